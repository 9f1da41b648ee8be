"""A curriculum: easy data first, then harder data, through the one loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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


def growing(stages: Sequence[Stage], make: Callable[[int, int], B]) -> Callable[[int], Iterator[B]]:
    """Data for the loop, an epoch a stage; the last stage goes on in later epochs.

    Args:
        make: (size, number of the batch in the whole run) -> the batch, the same each time.

    Returns:
        What `Trainer.fit` takes: an epoch's number -> its batches.
    """
    if not stages or any(s.size < 1 or s.batches < 1 for s in stages):
        raise KeifuError("a curriculum needs a stage, each with a size and batches of 1 or more")

    def epoch(number: int) -> Iterator[B]:
        held = [stages[min(n, len(stages) - 1)] for n in range(number + 1)]
        first = sum(stage.batches for stage in held[:-1])
        for n in range(held[-1].batches):
            yield make(held[-1].size, first + n)

    return epoch
