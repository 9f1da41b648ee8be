"""What an engine counts of its own work: plain numbers, for whoever wants to show them.

Counting costs a few additions a step and a token. Another thread may read the numbers at any time;
what it then sees of one step may be incomplete.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keifu.inference.request import Delta

if TYPE_CHECKING:
    from keifu.inference.admission import Admission
    from keifu.inference.prefixes import Prefixes
    from keifu.inference.sequence import Sequence as Output
    from keifu.inference.speculation import Speculation

STEP = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Bounds for the tokens of a step."""
GAP = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75)
GAPS = (*GAP, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
"""Bounds for the seconds between two tokens."""


class Histogram:
    """How many values were at most each bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """Values up to each bound and above the one before; the last of those above all."""
        self.total = 0.0

    def add(self, value: float) -> None:
        """One more value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """All values."""
        return sum(self.counts)


@dataclass(kw_only=True)
class Meter:
    """What one engine has done since it began."""

    prompt: int = 0
    """Tokens of the prompts that were read; those that were found read already, too."""
    generated: int = 0
    preempted: int = 0
    """Requests that ran and had to wait again."""
    sought: int = 0
    """Prompt tokens that were looked for among what was read before."""
    found: int = 0
    """Those of them that needed no reading."""
    steps: Histogram = field(default_factory=lambda: Histogram(STEP))
    """Tokens of each step of the model."""
    gaps: Histogram = field(default_factory=lambda: Histogram(GAPS))
    """Seconds from each token of an output to the next."""

    def step(self, lengths: Sequence[int]) -> None:
        """The model has read so many tokens of each output; none: a guesser has."""
        if lengths:
            self.steps.add(sum(lengths))

    def sent(self, output: Output, delta: Delta, *, live: bool = True) -> None:
        """An output goes on, or ends.

        Args:
            live: whether its tokens are sent as they are made.
        """
        new, job = len(delta.tokens), output.job
        first = output.generated == new and output.index == 0
        if first and (new or delta.finish == "length"):  # else nothing was read to its end
            self.prompt += job.read
            self.sought += job.sought
            self.found += job.cached if job.sought else 0
        if not new:
            return
        self.generated += new
        if live:
            now = time.monotonic()
            if output.last:
                self.gaps.add(now - output.last)
            output.last = now


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """An engine as it is now, and what it has counted."""

    meter: Meter
    running: int
    """Requests that it is at work on."""
    waiting: int
    """Requests that wait for room."""
    used: float
    """The share of the state budget that requests hold, 0 to 1."""
    pages: int
    page: int
    """Tokens of a page."""
    dtype: str
    prefixes: bool
    """Whether what begins alike is read once."""
    guesses: tuple[int, int, int] | None
    """Steps of an output with guesses, tokens guessed, those that were right; None: never any."""


def statistics(
    queue: Admission, shared: Prefixes, guesses: Speculation | None = None
) -> Statistics:
    """What an engine says of itself. Safe from any thread."""
    pool = queue.pool
    running = {id(o.job) for o in list(queue.running)} | {id(s.job) for s in list(queue.searches)}
    waiting = {id(o.job) for o in list(queue.waiting)} - running
    return Statistics(
        meter=queue.meter,
        running=len(running),
        waiting=len(waiting),
        used=pool.used,
        pages=min((group.pages for group in pool.groups), default=0),
        page=pool.page,
        dtype=str(pool.dtype).removeprefix("torch."),
        prefixes=shared.tree is not None,
        guesses=(guesses.drafts, guesses.drafted, guesses.accepted) if guesses else None,
    )
