"""What a server process counts of its requests: plain numbers, one tally a model."""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from keifu.inference.meter import GAPS, Histogram
from keifu.inference.request import Delta, Timings, Usage

_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5)
FIRST = (*_FIRST, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
"""Bounds for the seconds up to a first token."""
_WHOLE = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
WHOLE = (*_WHOLE, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)
"""Bounds for the seconds of a request and of its parts."""
OUTPUTS = (1, 2, 5, 10, 20)
"""Bounds for the outputs that a request asks for."""
TOKENS = tuple(m * 10**e for e in range(6) for m in (1, 2, 5))
"""Bounds for the tokens of a request: up to half a million."""


def _seconds() -> Histogram:
    return Histogram(WHOLE)


def _tokens() -> Histogram:
    return Histogram(TOKENS)


@dataclass(kw_only=True)
class Tally:
    """The requests to one model. Those that ended by themselves are in the histograms, each once;
    `ended` counts all that began, by outputs."""

    running: int = 0
    """Requests that hold a place."""
    waiting: int = 0
    """Requests that wait for one."""
    ended: Counter[str] = field(default_factory=Counter)
    """Outputs by why they ended: "stop", "length", "abort", "error"."""
    first: Histogram = field(default_factory=lambda: Histogram(FIRST))
    """Seconds from a request's arrival to its first token, of all that came so far."""
    whole: Histogram = field(default_factory=_seconds)
    """Seconds from arrival to end."""
    queued: Histogram = field(default_factory=_seconds)
    """Seconds without work: before a place, and in the engine's own queue."""
    prefill: Histogram = field(default_factory=_seconds)
    decode: Histogram = field(default_factory=_seconds)
    """Seconds from the first token to the last."""
    inference: Histogram = field(default_factory=_seconds)
    """Both of these."""
    pace: Histogram = field(default_factory=lambda: Histogram(GAPS))
    """Mean seconds from a token to the next, of requests with two or more."""
    prompt: Histogram = field(default_factory=_tokens)
    generated: Histogram = field(default_factory=_tokens)
    longest: Histogram = field(default_factory=_tokens)
    """Tokens of a request's longest output."""
    max_tokens: Histogram = field(default_factory=_tokens)
    """Of requests that said so."""
    n: Histogram = field(default_factory=lambda: Histogram(OUTPUTS))


class Watch:
    """One request to a model, from its arrival to its end: leaving the block counts it."""

    def __init__(self, tally: Tally, arrived: float, options: Mapping[str, Any]) -> None:
        self._tally, self._arrived = tally, arrived
        self._max: int | None = options.get("max_tokens")
        self._n: int = options.get("n", 1)
        self._placed = self._began = False
        self._at = self._first = 0.0
        """When it got its place, and its first token."""
        self._last: dict[int, Delta] = {}

    def __enter__(self) -> Watch:
        self._tally.waiting += 1
        return self

    def placed(self) -> None:
        """It waits no longer."""
        self._placed, self._at = True, time.monotonic()
        self._tally.waiting -= 1
        self._tally.running += 1

    def began(self) -> None:
        """The model has taken it."""
        self._began = True

    def take(self, delta: Delta) -> None:
        """A piece of its output came."""
        if not self._first and (delta.tokens or delta.text):
            self._first = time.monotonic()
            self._tally.first.add(self._first - self._arrived)
        if delta.finish:
            self._last[delta.index] = delta

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        tally = self._tally
        if self._placed:
            tally.running -= 1
        else:
            tally.waiting -= 1
        if len(self._last) == self._n:  # whatever came after the end
            self._count()
        elif kind is not None and issubclass(kind, CancelledError | GeneratorExit):
            tally.ended["abort"] += self._n
        elif self._began:
            tally.ended["error"] += self._n

    def _count(self) -> None:
        tally, now = self._tally, time.monotonic()
        lasts = list(self._last.values())
        for last in lasts:
            tally.ended["length" if last.finish == "length" else "stop"] += 1
        usages = [last.usage or Usage() for last in lasts]
        times = [last.timings for last in lasts if last.timings is not None]
        if not times:  # of a model that runs elsewhere
            first = self._first or now
            times = [Timings(prefill=first - self._at, decode=now - first)]
        decode = max(t.decode for t in times)
        tally.whole.add(now - self._arrived)
        tally.queued.add(self._at - self._arrived + times[0].queued)
        tally.prefill.add(times[0].prefill)
        tally.decode.add(decode)
        tally.inference.add(times[0].prefill + decode)
        tally.prompt.add(usages[0].prompt_tokens)
        made = [usage.completion_tokens for usage in usages]
        tally.generated.add(sum(made))
        tally.longest.add(max(made))
        if max(made) > 1:
            tally.pace.add(decode / (max(made) - 1))
        tally.n.add(self._n)
        if self._max is not None:
            tally.max_tokens.add(self._max)
