"""A curriculum: easy data first, then harder data, through the one loop."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

from keifu.core.errors import KeifuError

B = TypeVar("B")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One level of difficulty."""

    size: int
    """How hard: the segments of a row, for models with memory (Bulatov et al. 2023)."""
    batches: int
    """How many batches it lasts."""


def growing(stages: Sequence[Stage], make: Callable[[int, int], B]) -> Callable[[int], B]:
    """Data for the loop, stage after stage; the last one goes on.

    Args:
        make: (size, number of the batch in the whole run) -> the batch, the same each time.
    """
    if not stages or any(s.size < 1 or s.batches < 1 for s in stages):
        raise KeifuError("a curriculum needs a stage, each with a size and batches of 1 or more")
    ends = list(accumulate(stage.batches for stage in stages))

    def batch(number: int) -> B:
        stage = min(bisect_right(ends, number), len(stages) - 1)
        return make(stages[stage].size, number)

    return batch
