"""Intake: what a request must be before it is queued, and the job that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.inference.grammar import Grammars
from keifu.inference.kept import Kept
from keifu.inference.request import ParameterError, Sampling
from keifu.inference.rules import Rules
from keifu.inference.sequence import Job
from keifu.inference.sequence import Sequence as Output
from keifu.inference.stream import Stream
from keifu.nn.gist import landmarks_of
from keifu.nn.masks import UNMARKED, Landmarks
from keifu.nn.pair import PairModule
from keifu.nn.state import StatePool


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request, as it is made of an engine. See `Engine.submit`."""

    prompt: Sequence[int]
    sampling: Sampling
    prefix: Sequence[int] = ()
    continues: bool = True
    shown: frozenset[int] = frozenset()
    memories: Mapping[str, Tensor] | None = None
    past: Kept | None = None
    keep: Callable[[Output], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Intake:
    """The bounds of one engine. Every refusal is a KeifuError, before anything is queued."""

    owner: object
    """The engine, whose pasts requests may continue."""
    pool: StatePool
    pair: PairModule | None
    rules: Rules
    vocab: int
    source_vocab: int
    context: int
    source_context: int
    grammars: Grammars
    gist: int | None = None
    """The id of the gist token, where the model has one."""

    def job(self, ask: Ask, stream: Stream, end_ids: frozenset[int]) -> Job:
        """A request as the queue takes it.

        Raises:
            ContextLengthError: the prompt, or the prompt with max_tokens, does not fit.
        """
        tokens, source = tuple(ask.prompt), tuple[int, ...]()
        lengths = {name: m.shape[0] for name, m in (ask.memories or {}).items()}
        marks = self.landmarks(ask.prompt, ask.past)
        offset = ask.past.length if ask.past else 0
        if self.pair is not None:
            tokens, source = (*self.rules.start, *ask.prefix), tokens
            self.check_source(source, ask.sampling, ask.prefix, offset)
            kept = {self.pair.spec.memory: self.pair.places(offset + len(source), marks)}
            lengths |= {n: kept[n] for n in self.pool.memories if n in kept}
            offset = 0
        elif ask.prefix:
            raise KeifuError("this model reads its prompt itself: put the prefix there")
        self.check(tokens, ask.sampling, offset)
        self.pool.check(lengths)
        room = self.context - offset - len(tokens)
        constraint = ask.sampling.constraint
        wanted = room if ask.sampling.max_tokens is None else ask.sampling.max_tokens
        return Job(
            prompt=tokens,
            sampling=ask.sampling,
            stream=stream,
            end_ids=frozenset() if ask.sampling.ignore_eos else end_ids,
            limit=offset + len(tokens) + wanted,
            continues=ask.continues,
            shown=ask.shown,
            memories=ask.memories or {},
            source=source,
            places=lengths,
            rules=self.rules,
            grammar=None if constraint is None else self.grammars.compile(constraint),
            read=len(source) + len(ask.prefix) if self.pair else len(tokens),
            past=ask.past,
            offset=offset,
            landmarks=marks,
            keep=ask.keep,
            cached=ask.past.tokens if ask.past else 0,
        )

    def landmarks(self, prompt: Sequence[int], past: Kept | None) -> Landmarks:
        """Where a request's gist tokens are: in its prompt, or in the past that it continues."""
        marks = landmarks_of(prompt, self.gist)
        if past is None:
            return marks
        if past.engine is not self.owner:
            raise KeifuError("a kept past is of the engine that read it: read it in this one")
        if not past.held:
            raise KeifuError("the past that a request was to continue is released: read it again")
        if marks != UNMARKED:
            raise KeifuError("the prompt has gist tokens of its own after those of its past")
        return past.landmarks

    def check(self, tokens: Sequence[int], sampling: Sampling, offset: int = 0) -> None:
        """Refuse what a decoder cannot read, or has no room for after `offset` positions."""
        check_ids(tokens, self.vocab)
        for name, ids in (("logit_bias", sampling.logit_bias), ("stop_ids", sampling.stop_ids)):
            if wrong := [t for t in ids if not 0 <= t < self.vocab]:
                raise ParameterError(name, wrong[0], f"token ids from 0 to {self.vocab - 1}")
        wanted = sampling.max_tokens if sampling.max_tokens is not None else 1
        if offset + len(tokens) + wanted > self.context:
            read = offset + len(tokens)
            raise ContextLengthError(read, self.context, sampling.max_tokens or 0)

    def check_source(
        self, source: Sequence[int], sampling: Sampling, prefix: Sequence[int], offset: int = 0
    ) -> None:
        """Refuse what an encoder cannot read."""
        check_ids(source, self.source_vocab)
        if offset + len(source) > self.source_context:
            raise ContextLengthError(offset + len(source), self.source_context)
        if sampling.prompt_logprobs is not None and not prefix:
            why = "nothing predicts what an encoder reads; score a target instead"
            raise ParameterError("prompt_logprobs", sampling.prompt_logprobs, why)


def check_ids(tokens: Sequence[int], vocab: int) -> None:
    """Refuse what is empty or outside the vocabulary."""
    if not tokens:
        raise KeifuError("the prompt has no tokens: give some text")
    wrong = [t for t in tokens if not 0 <= t < vocab]
    if wrong:
        raise KeifuError(f"token id {wrong[0]} is not in the vocabulary of {vocab}")
