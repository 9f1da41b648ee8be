"""Where a process's part of a tensor lies in the whole, through one cut after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from torch import Tensor

from keifu.nn.split import Cut, Run

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes."""


@dataclass(frozen=True)
class Place:
    """Some runs of every dimension of a whole, one after another."""

    whole: tuple[int, ...]
    runs: tuple[tuple[Run, ...], ...]
    """Of each dimension."""
    first: bool = True
    """Whether this process is the first of those that hold it: it speaks for them."""
    zero: bool = False
    """Held by others; here are zeros in its place, and stay."""

    @classmethod
    def all_of(cls, shape: Sequence[int]) -> Place:
        """The whole."""
        return cls(tuple(shape), tuple(((0, n),) for n in shape))

    def cut(self, cut: Cut) -> Place:
        """A cut of what is here."""
        return self._narrowed(cut.dim, cut.runs)

    def chunk(self, start: int, stop: int) -> Place:
        """Some rows of what is here."""
        return self._narrowed(0, ((start, stop),))

    def _narrowed(self, dim: int, wanted: Sequence[Run]) -> Place:
        """Runs of what is here, told as runs of the whole."""
        found = []
        for start, stop in wanted:
            at = 0
            for a, b in self.runs[dim]:
                low, high = max(start, at), min(stop, at + b - a)
                if low < high:
                    found.append((a + low - at, a + high - at))
                at += b - a
        runs = (*self.runs[:dim], tuple(found), *self.runs[dim + 1 :])
        return Place(self.whole, runs, self.first, self.zero)

    def boxes(self) -> list[tuple[Box, tuple[slice, ...]]]:
        """The boxes of the whole that are here, each with where it is here."""
        each = []
        for runs in self.runs:
            at, dim = 0, []
            for start, stop in runs:
                dim.append(((start, stop - start), slice(at, at + stop - start)))
                at += stop - start
            each.append(dim)
        return [
            (
                (tuple(part[0][0] for part in parts), tuple(part[0][1] for part in parts)),
                tuple(part[1] for part in parts),
            )
            for parts in product(*each)
        ]

    def shape(self) -> tuple[int, ...]:
        """Of the part that is here."""
        return tuple(sum(b - a for a, b in runs) for runs in self.runs)

    def own(self, whole: Tensor) -> Tensor:
        """The part of a whole that is here, as a tensor of its own."""
        found = whole.new_zeros(self.shape())
        if not self.zero:
            for (offsets, sizes), here in self.boxes():
                there = tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))
                found[here] = whole[there]
        return found
