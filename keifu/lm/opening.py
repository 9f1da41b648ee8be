"""Opening a model of this machine: what a checkpoint is decides which LM it becomes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from keifu.checkpoints import known
from keifu.checkpoints.store import pull
from keifu.core import machine
from keifu.core.errors import KeifuError, unknown
from keifu.families._load import Checkpoint, build_model, open_checkpoint
from keifu.families._sentence import is_sentence_folder, open_sentence
from keifu.inference.chunks import chunk_of
from keifu.inference.crew import Crew
from keifu.inference.encode import BATCH
from keifu.inference.engine import Engine
from keifu.inference.plans import runners
from keifu.inference.rules import Rules
from keifu.lm.base import LM
from keifu.lm.devices import placed
from keifu.lm.fitting import check_room, free_bytes
from keifu.lm.keeping import check_state, with_state
from keifu.lm.local import LocalLM
from keifu.nn.characters import CharacterCNN
from keifu.nn.gist import TOKEN, gisted
from keifu.nn.kernels import native
from keifu.nn.packing import KINDS, pack
from keifu.nn.pair import Pair, PairModule
from keifu.nn.part import Part
from keifu.nn.retrieved import retrieving
from keifu.nn.split import Rank
from keifu.nn.stack import Stack, StackModule
from keifu.nn.state import Memory, places, state_bytes
from keifu.nn.streaming import streaming
from keifu.text.load import load_reader
from keifu.text.tokenizer import Tokenizer

_PAGE = 32
"""Tokens of a page of state."""
ENDLESS = 2**24
"""Most tokens of a request to a model that reads through a window."""
SOURCE = 2**18
"""Places of retrieved sources that are held, all requests together, where memory allows."""


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """How a model of this machine is loaded."""

    ctx: int | None = None
    """Most tokens of a request; None: what the model was made for, as far as memory goes."""
    threads: int | None = None
    """Processor threads; None: the cores this process may use."""
    precision: str = "default"
    """"default" or "exact" (float32 arithmetic)."""
    state: str = "default"
    """How keys and values are kept: "bf16", "int8" (codes with a scale a head), or "default", the
    faster of the two."""
    max_memory: int | None = None
    """Bytes for the state of all requests; None: half of what is free, at most what `parallel`
    requests of `ctx` tokens need."""
    parallel: int = 4
    """Requests that run at once."""
    window: int | None = None
    """Tokens that attention looks back on; what is older is forgotten, and texts may be of any
    length (StreamingLLM). None: as the model was made."""
    sinks: int = 4
    """First tokens that stay visible beside a window."""
    device: str = "cpu"
    """Where it runs; `load_local` takes the fastest that is there where none is named."""
    template: str | None = None
    """The name of a chat format, for checkpoints that carry none."""
    pooling: str | None = None
    """Load it to embed, and make vectors of its last hidden states in this way: one of
    `keifu.nn.sentence.MODES` or several ("cls+mean")."""
    batch: int | None = None
    """Tokens that an encoder runs together."""
    quantize: str = "none"
    """Pack dense matrices in fewer bits once they are read: "none", "int8", "int4" or "fp8"."""
    experts: str = "resident"
    """Where experts' matrices are: "resident" in memory, or "mapped": in the file until used."""
    retrieve: int | None = None
    """Places of the source that each head of an encoder-decoder's cross-attention reads, as in
    Unlimiformer: the source may then be of any length that the state's memory holds."""
    speculate: str = "none"
    """What guesses tokens ahead: "none", "lookup", "draft:MODEL" or "early-exit:LAYERS". The
    output is the same up to rounding; whether it comes sooner depends on the text."""
    prefixes: bool = True
    """Keep what was read, so that texts that begin alike are not read twice from there."""
    tensor_parallel: int = 1
    """Processes that share the model, each with its part of every layer and of the state."""
    deterministic: bool = False
    """Compute a request to the same last bit whatever else runs: slower, each request alone."""
    allow_pickle: bool = False
    allow_nonfinite: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""
        return torch.float32 if self.precision == "exact" else torch.bfloat16

    @property
    def kept(self) -> torch.dtype:
        """What state is kept in."""
        return torch.int8 if self.state == "int8" else self.dtype

    @property
    def compute(self) -> torch.dtype | None:
        """What branches compute in beside the residual, which stays float32; None: the same."""
        return None if self.dtype == torch.float32 else self.dtype


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A checkpoint on its way to being an LM: nothing is read but its headers."""

    ref: str
    checkpoint: Checkpoint
    options: LocalOptions

    @property
    def name(self) -> str:
        """What the model is called."""
        return Path(self.ref).name if Path(self.ref).exists() else self.ref

    def spec(self) -> Part:
        """Its parts, with the window and the retrieval that were asked for."""
        spec, options = self.checkpoint.family.spec(), self.options
        if isinstance(spec, Stack | Pair) and self.gist() is not None:
            spec = gisted(spec)
        if options.window is not None:
            spec = self._streaming(spec, options.window)
        if options.retrieve is None:
            return spec
        if not isinstance(spec, Pair):
            raise KeifuError(
                f"retrieve={options.retrieve} is for encoder-decoders, and {self.name} is none: "
                "leave it out"
            )
        length = options.ctx or self.checkpoint.family.context
        return retrieving(spec, options.retrieve, length=length)

    def _streaming(self, spec: Part, window: int) -> Part:
        family, kept = self.checkpoint.family, window + self.options.sinks
        if kept > family.context and not family.unlimited:
            raise KeifuError(
                f"a window of {window} and {self.options.sinks} sinks is more than the "
                f"{family.context} positions that {self.checkpoint.path.name} was made for"
            )
        return streaming(spec, window, self.options.sinks)

    def build(
        self,
        precision: str | None = None,
        *,
        rank: Rank | None = None,
        device: str | None = None,
    ) -> nn.Module:
        """Its weights, read; or one process's share of them."""
        options, spec = self.options, self.spec()
        precision = precision or options.precision
        if options.quantize not in ("none", *KINDS):
            raise unknown("kind of quantisation", options.quantize, ("none", *KINDS))
        if options.quantize != "none" and precision == "exact":
            raise KeifuError("precision='exact' keeps no packed weights: leave quantize out")
        if rank is None or rank.rank == 0:
            check_room(self, spec, precision)
        model = build_model(
            self.checkpoint,
            spec=spec,
            precision=precision,
            experts=options.experts,
            device=device or options.device,
            allow_nonfinite=options.allow_nonfinite,
            rank=rank,
        )
        if options.quantize != "none":
            pack(model, options.quantize)
        return model

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, with the chat format that was asked for."""
        tokenizer = self._tokenizer
        if self.options.template is None:
            return tokenizer
        from keifu.text.chat_formats import chat_format

        return tokenizer.with_template(chat_format(self.options.template).jinja())

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return self.checkpoint.tokenizer()

    def gist(self) -> int | None:
        """The id of the gist token, in whose presence attention is masked, where there is one."""
        if "generate" not in self.checkpoint.family.tasks:
            return None
        tokenizer = load_reader(self.checkpoint.path) or self._tokenizer
        return tokenizer.id(TOKEN) if tokenizer.knows(TOKEN) else None

    def context(self) -> int:
        """The context asked for; more than it was made for only where there is no fixed table."""
        most, asked = self.checkpoint.family.context, self.options.ctx
        if self.options.window is not None:
            most = ENDLESS
        if asked is None:
            return most
        if asked < 1:
            raise KeifuError(f"ctx={asked} is not allowed: at least 1")
        if asked > most and not self.checkpoint.family.unlimited:
            raise KeifuError(
                f"ctx={asked} is more than the {most} positions that "
                f"{self.checkpoint.path.name} was made for"
            )
        return asked


def load_local(ref: str, **given: Any) -> LM:
    """Load a checkpoint and start what runs it: an engine, or for encoders what embeds.

    Args:
        ref: a path, a known name, or a hub id.
        given: fields of `LocalOptions`.
    """
    options = _options({**given, "device": str(placed(given.get("device")))})
    check_state(options)
    checkpoint = open_checkpoint(ref, allow_pickle=options.allow_pickle)
    if "transcribe" in checkpoint.family.tasks:
        raise KeifuError(f"{checkpoint.family_name} models hear and do not read: keifu transcribe")
    workers = options.threads or machine.threads()
    torch.set_num_threads(workers)
    if native.available():
        native.set_threads(workers)
    opened = Opened(ref=ref, checkpoint=checkpoint, options=options)
    spec = opened.spec()
    if isinstance(spec, Stack) and isinstance(spec.input, CharacterCNN):
        return _words(opened, spec.input.length)
    if not isinstance(spec, Stack | Pair):
        tasks = ", ".join(checkpoint.family.tasks)
        raise KeifuError(f"{checkpoint.family_name} models do not generate text, but: {tasks}")
    if isinstance(spec, Pair) and spec.decoder.head is None:
        raise KeifuError(
            f"{opened.name} judges texts and writes none: call it through keifu.families.load_model"
        )
    judges = isinstance(spec, Stack) and spec.head is None
    if options.tensor_parallel < 1:
        raise KeifuError(f"tensor_parallel={options.tensor_parallel} is not allowed: at least 1")
    embeds = options.pooling or judges or "generate" not in checkpoint.family.tasks
    if embeds or is_sentence_folder(pull(ref)):
        return _encoder(opened)
    return _generator(opened)


def _options(given: Mapping[str, Any]) -> LocalOptions:
    names = [f.name for f in dataclasses.fields(LocalOptions)]
    for key in given:
        if key not in names:
            raise unknown("option of a local model", key, names)
    return LocalOptions(**{key: value for key, value in given.items() if value is not None})


def _words(opened: Opened, length: int) -> LM:
    """A model that reads words as characters, in float32: its recurrence would gather rounding."""
    from keifu.lm.words import WordsLM

    options = opened.options
    if options.pooling not in (None, "mean"):
        family = opened.checkpoint.family_name
        raise KeifuError(f"pooling={options.pooling!r} is not for {family}: mean")
    model = opened.build(precision="exact")
    assert isinstance(model, StackModule)
    return WordsLM(opened.name, model, length=length, device=options.device)


def _encoder(opened: Opened) -> LM:
    """A stack that embeds or judges."""
    from keifu.lm.encoder import EncoderLM, reading_of

    options, checkpoint, path = opened.options, opened.checkpoint, pull(opened.ref)
    folder = open_sentence(path) if is_sentence_folder(path) else None
    tokenizer, model = opened.tokenizer(), opened.build()
    if not isinstance(model, StackModule):
        raise KeifuError(
            f"{opened.name} is an encoder-decoder, which does not embed: load its encoder"
        )
    reading = reading_of(
        folder,
        checkpoint.config,
        width=int(vars(checkpoint.family)["width"]),
        context=opened.context(),
        pooling=options.pooling,
    )
    return EncoderLM(
        opened.name,
        checkpoint.family,
        model,
        tokenizer,
        reading,
        batch=options.batch or BATCH,
        compute=options.compute,
        device=options.device,
        allow_pickle=options.allow_pickle,
    )


def _generator(opened: Opened) -> LM:
    """A decoder or an encoder-decoder, behind an engine."""
    from keifu.lm.speculating import draft_of

    options, checkpoint = opened.options, opened.checkpoint
    tokenizer, context, crew = opened.tokenizer(), opened.context(), Crew()
    if options.tensor_parallel > 1:
        from keifu.lm.processes import lead

        model: nn.Module
        model, crew = lead(opened, options.tensor_parallel)
    else:
        model = opened.build()
    assert isinstance(model, StackModule | PairModule)
    options = with_state(options, model)
    reader = load_reader(checkpoint.path) if isinstance(model, PairModule) else None
    endless = options.retrieve or (checkpoint.family.unlimited and options.ctx is None)
    beams = int(checkpoint.generation.get("beams", 1))
    budget, places = _budget(model.spec, context, options, beams)
    if options.deterministic and options.speculate != "none":
        raise KeifuError(
            "deterministic steps are of one token, and guesses need more: leave speculate out"
        )
    engine = Engine(
        model,
        tokenizer,
        context=context,
        source_context=None if endless else context,
        source_vocab=None if reader is None else reader.vocab_size,
        rules=Rules(**checkpoint.rules),
        parallel=options.parallel,
        budget=budget,
        places=places,
        dtype=options.dtype,
        state=options.kept,
        device=options.device,
        end_ids=tokenizer.eos_ids,
        prefixes=options.prefixes,
        deterministic=options.deterministic,
        gist=opened.gist(),
        runners=None if options.precision == "exact" or crew.size > 1 else runners,
        crew=crew,
        draft=draft_of(options.speculate, options, context),
    )
    named = known.find(opened.ref)
    recommended = {**(named.sampling if named else {}), **checkpoint.generation}
    if isinstance(model, PairModule):
        from keifu.lm.pair import PairLM

        return PairLM(opened.name, engine, tokenizer, recommended, reader=reader)
    return LocalLM(opened.name, engine, tokenizer, recommended)


def _budget(
    spec: Stack | Pair, context: int, options: LocalOptions, beams: int
) -> tuple[int, int | None]:
    """Bytes of state: what all requests, or the beams of one, need at most, within half of the
    free memory; and how many places of sources are in that, where they are counted apart."""
    entries, given = spec.entries(), options.max_memory
    fixed, token = state_bytes(entries, options.kept)
    fixed *= options.parallel + 64
    chunk = chunk_of(torch.device(options.device))
    most, half = max(options.parallel, beams), free_bytes(options.device) // 2
    if options.retrieve is None:
        needed = fixed + token * places(entries, context, chunk) * most
        found = max(min(needed, half), fixed + token * _PAGE)
        return found if given is None else given, None
    own = [{n: e for n, e in use.items() if not isinstance(e, Memory)} for use in entries]
    written = state_bytes(own, options.kept)[1]
    needed = fixed + written * places(own, context, chunk) * most
    found = max(min(needed + (token - written) * SOURCE, half), needed)
    budget = found if given is None else given
    return budget, max((budget - needed) // (token - written), _PAGE)
