"""What a context costs: bytes of state, resident memory and seconds a token at each length.

A meter runs one model the way the engine does (its state pool, its fast path, its chunks) on
random tokens, since what a token costs does not depend on which it is. `published:NAME` is a
published configuration with random weights, so that no checkpoint need be at hand.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from keifu.core import machine
from keifu.core.errors import KeifuError, unknown
from keifu.families import Family, families
from keifu.families._load import PRECISIONS, build_model, open_checkpoint
from keifu.families.published import PUBLISHED
from keifu.inference.chunks import CHUNK
from keifu.inference.plans import runners
from keifu.inference.runner import Feed, Runner, TorchRunner
from keifu.nn.kernels import native
from keifu.nn.part import build, count
from keifu.nn.stack import Stack, StackModule
from keifu.nn.state import Entry, Fixed, PerToken, StatePool, state_bytes, stored

RANDOM = "published:"
_SLACK = 64
"""Tokens beyond the longest length, for whole pages."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one more token costs at one length, and what has been taken up to there."""

    length: int
    declared: int
    """Bytes of state that the model's parts say a request of this length takes."""
    state: int
    """Bytes that its slot and pages really take."""
    resident: int
    """Bytes of the process."""
    seconds: float
    """A token, decoding: median of the windows' means."""
    prefill: float
    """Tokens a second, reading up to there."""


class Meter:
    """One model, ready to be measured.

    Args:
        model: a path, a name, a hub id, or `published:NAME` for random weights.
        context: most tokens that will be asked for.

    Raises:
        KeifuError: it is not there, has no such context, or is no decoder.
    """

    def __init__(
        self, model: str, context: int, *, threads: int | None = None, precision: str = "default"
    ) -> None:
        if precision not in PRECISIONS:
            raise unknown("precision", precision, PRECISIONS)
        workers = threads or machine.threads()
        torch.set_num_threads(workers)
        if native.available():
            native.set_threads(workers)
        self.dtype = PRECISIONS[precision]
        self.family, self.model = _opened(model, context, precision)
        entries = self.model.spec.entries()
        self.entries = entries
        self.fixed, self.token = declared_slope(entries, self.dtype)
        fixed, token = state_bytes(entries, self.dtype)  # pages are reserved, not touched
        budget = fixed + token * (context + _SLACK)
        self.pool = StatePool(entries, budget=budget, slots=1, dtype=self.dtype)
        plain: Runner = TorchRunner(self.model, self.pool)
        fast: list[Runner] = []
        if precision != "exact":
            fast, _ = runners(self.model, self.pool, context)
        self.runners = [*fast, plain]
        self.compute = None if self.dtype == torch.float32 else self.dtype

    def facts(self) -> dict[str, Any]:
        """What is known before anything is measured."""
        return {
            "family": type(self.family).__name__,
            "parameters": count(self.model.spec),
            "fixed": self.fixed,
            "token": self.token,
            "path": type(self.runners[0]).__name__,
        }

    @torch.inference_mode()
    def at(self, length: int, *, windows: int = 3, window: int = 16) -> Cost:
        """Read up to so many tokens in chunks, the last `windows * window` one at a time."""
        made, vocab = torch.Generator().manual_seed(length), int(vars(self.family)["vocab"])
        ids = torch.randint(0, vocab, (length,), generator=made).tolist()
        state = self.pool.open()
        try:
            read = length - windows * window

            def step(tokens: int) -> None:
                start = state.length
                self.pool.reserve(state, tokens)
                feed = Feed(
                    ids=ids[start : start + tokens],
                    states=[state],
                    lengths=[tokens],
                    limits=[length],
                    compute=self.compute,
                )
                runner = next(r for r in self.runners if r.takes([tokens], [state]))
                runner.run(feed, [tokens - 1])
                self.pool.advance(state, tokens)

            begun = time.perf_counter()
            while state.length < read:
                step(min(CHUNK, read - state.length))
            prefill = read / (time.perf_counter() - begun)
            means = []
            for _ in range(windows):
                begun = time.perf_counter()
                for _ in range(window):
                    step(1)
                means.append((time.perf_counter() - begun) / window)
            return Cost(
                length=length,
                declared=request_bytes(self.entries, length, self.dtype),
                state=self.pool.held(state),
                resident=psutil.Process().memory_info().rss,
                seconds=statistics.median(means),
                prefill=prefill,
            )
        finally:
            self.pool.free(state)


def request_bytes(entries: Sequence[Mapping[str, Entry]], length: int, dtype: torch.dtype) -> int:
    """Bytes that one request of `length` tokens holds, over all uses, where windows let go."""
    total = 0
    for entry in stored(entries).values():
        if isinstance(entry, Fixed):
            total += math.prod(entry.shape) * entry.dtype.itemsize
        elif isinstance(entry, PerToken):
            reach = length if entry.window is None else entry.window + entry.sinks
            total += entry.form(dtype).bytes * min(length, reach)
    return total


def declared_slope(entries: Sequence[Mapping[str, Entry]], dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that a request takes at any length, and that each token adds once windows are full."""
    far = 1 << 26
    slope = request_bytes(entries, far + 1, dtype) - request_bytes(entries, far, dtype)
    return request_bytes(entries, far, dtype) - far * slope, slope


def _opened(model: str, context: int, precision: str) -> tuple[Family, StackModule]:
    if model.startswith(RANDOM):
        family = _published(model.removeprefix(RANDOM))
        spec = family.spec()
        if isinstance(spec, Stack) and "generate" in family.tasks:
            _room(model, family, context)
            _fits(model, count(spec) * 4)
            return family, _random(spec, PRECISIONS[precision])
    else:
        checkpoint = open_checkpoint(model)
        family, spec = checkpoint.family, checkpoint.family.spec()
        if isinstance(spec, Stack) and "generate" in family.tasks:
            _room(model, family, context)
            loaded = build_model(checkpoint, precision=precision)
            assert isinstance(loaded, StackModule)
            return family, loaded
    raise KeifuError(f"{model} does not continue texts: give a decoder")


def _random(spec: Stack, dtype: torch.dtype) -> StackModule:
    """The network with random weights, in the types that a loaded one would have."""
    made = build(spec)
    assert isinstance(made, StackModule)
    made.initialise(seed=0, std=0.02)
    for parameter in made.parameters():
        parameter.requires_grad_(False)
        if parameter.dim() > 1:
            parameter.data = parameter.data.to(dtype)
    return made.eval()


def _published(name: str) -> Family:
    if name not in PUBLISHED:
        raise unknown("published model", name, PUBLISHED, "all: keifu list published")
    row = PUBLISHED[name]
    return families[row.family].from_hf(row.config)


def _room(model: str, family: Family, context: int) -> None:
    if context > family.context and not family.unlimited:
        raise KeifuError(
            f"--lengths {context} is more than the {family.context} positions that {model} has"
        )


def _fits(model: str, size: int) -> None:
    free = machine.memory().available
    if size > free:
        raise KeifuError(f"{model} takes {size >> 20} MiB and {free >> 20} are free")
