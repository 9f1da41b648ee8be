"""Several sources as one run: weights, a temperature, limits of epochs, stages.

Sources: weights rather than sizes: Brown et al. 2020 (GPT-3), table 2.2. Temperature: Arivazhagan
et al. 2019 (arXiv 1907.05019), section 4.2: p is proportional to size^(1/T).

Which source a number belongs to, and which of its items, follows from the number alone. The run is
divided into blocks of 65,536 examples; in each, every source has its exact number of places, to the
nearest that its weight allows, and a seeded permutation says which. The items of a source are taken
one after another, so its own order (its epochs, its shuffling) is kept whatever it is mixed with.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from keifu.core.errors import KeifuError, unknown
from keifu.data.example import Example, Examples
from keifu.data.order import Permutation, key

BLOCK = 1 << 16
_TABLES = 32
"""Blocks that are kept, of half a megabyte each: who asks for distant examples stays quick."""


_Table = tuple[NDArray[np.int32], NDArray[np.int32]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source of a mixture."""

    name: str
    examples: Examples
    tokens: int
    """Of an epoch."""
    weight: float | None = None
    """Its share of the tokens, up to a common factor; None for all: by their sizes."""
    epochs: float | None = None
    """It is seen so often at most; its share then goes to the others."""

    @property
    def items(self) -> int:
        """Examples of an epoch."""
        if not self.examples.epoch:
            raise KeifuError(f"{self.name} has no epochs: it cannot be a part of a mixture")
        return self.examples.epoch

    @property
    def most(self) -> int | None:
        """How many examples it gives at most."""
        return None if self.epochs is None else int(self.epochs * self.items)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A time with weights of its own."""

    examples: int | None
    """How long it lasts; None: to the end."""
    weights: Mapping[str, float]
    """By source; those that are not named rest."""


@dataclass(frozen=True)
class _Segment:
    """A stretch of the run in which shares do not change."""

    first: int
    stage: int
    shares: tuple[int, ...]
    """Places of each part in a block."""
    used: tuple[int, ...]
    """Items of each part that came before."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a mixture takes of one source."""

    name: str
    examples: int
    tokens: int
    """By the mean length of its examples."""
    epochs: float
    share: float
    """Of all tokens."""


class Mixture:
    """An `Examples` of several: see the module."""

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        temperature: float = 1.0,
        stages: Sequence[Stage] = (),
        seed: int = 0,
    ) -> None:
        """Stages come one after another; without any, the parts' own weights hold throughout.

        Raises:
            KeifuError: weights or a temperature that mean nothing, names that are not there.
        """
        self.parts, self.seed = tuple(parts), seed
        names = [part.name for part in parts]
        if len(set(names)) < len(names) or not names:
            raise KeifuError(f"a mixture needs sources of different names, not {names}")
        if not temperature > 0:
            raise KeifuError(f"temperature={temperature} is not allowed: above 0")
        given = [part.weight for part in parts if part.weight is not None]
        if given and len(given) < len(parts):
            raise KeifuError("weights are for all sources of a mixture or for none")
        own = {part.name: float(_or(part.weight, part.tokens)) for part in parts}
        self.stages = tuple(stages) or (Stage(examples=None, weights=own),)
        self._weights = [self._of(stage, temperature) for stage in self.stages]
        self._tables: dict[tuple[int, int], _Table] = {}
        self._segments: list[_Segment] = []
        self.length: int | None = self._divide()
        """Examples after which every source has been seen as often as it may be; None: no end."""
        self._firsts = [segment.first for segment in self._segments]

    @property
    def epoch(self) -> int | None:
        """All of it where it ends, as it is then seen once; else there is none."""
        return self.length

    def __call__(self, number: int) -> Example:
        """The number-th example of the run."""
        part, item = self.where(number)
        found = self.parts[part].examples(item)
        return replace(found, source=self.parts[part].name)

    def where(self, number: int) -> tuple[int, int]:
        """Which part an example comes from, and its number among that part's.

        Raises:
            KeifuError: the sources are used up before.
        """
        if number < 0:
            raise KeifuError(f"there is no example {number}: they count from 0")
        if self.length is not None and number >= self.length:
            raise KeifuError(
                f"the sources end after {self.length} examples, there is no {number}: "
                "raise their epochs, or train for fewer steps"
            )
        at = bisect.bisect_right(self._firsts, number) - 1
        segment = self._segments[at]
        block, offset = divmod(number - segment.first, BLOCK)
        parts, ranks = self._table(at, block)
        part = int(parts[offset])
        before = segment.used[part] + block * segment.shares[part]
        return part, before + int(ranks[offset])

    def taken(self, count: int) -> tuple[int, ...]:
        """Examples of each part among the first `count` of the run."""
        if self.length is not None and count > self.length:
            raise KeifuError(f"the sources end after {self.length} examples")
        at = max(0, bisect.bisect_left(self._firsts, count) - 1)
        return self._used(at, count - self._segments[at].first)

    def report(self, count: int) -> tuple[Told, ...]:
        """What the first `count` examples take of each source."""
        taken = self.taken(count)
        each = [n * p.tokens / p.items for n, p in zip(taken, self.parts, strict=True)]
        total = sum(each) or 1.0
        return tuple(
            Told(
                name=part.name,
                examples=n,
                tokens=round(tokens),
                epochs=n / part.items,
                share=tokens / total,
            )
            for part, n, tokens in zip(self.parts, taken, each, strict=True)
        )

    def _of(self, stage: Stage, temperature: float) -> list[float]:
        """Each part's share of places in a stage, up to a factor."""
        names = [part.name for part in self.parts]
        for name, weight in stage.weights.items():
            if name not in names:
                raise unknown("source", name, names)
            if not 0 <= weight < float("inf"):
                raise KeifuError(f"{name}: a weight of {weight} means nothing: 0 or more")
        if not any(stage.weights.values()):
            raise KeifuError("every weight of a mixture's stage is 0")
        if stage.examples is not None and stage.examples < 1:
            raise KeifuError(f"a stage of {stage.examples} examples: 1 or more are needed")
        largest = max(stage.weights.values())
        return [
            (stage.weights.get(part.name, 0.0) / largest) ** (1 / temperature)
            * part.items / max(1, part.tokens)
            for part in self.parts
        ]  # fmt: skip

    def _divide(self) -> int | None:
        """Find the segments: a new one where a stage ends or a part is used up."""
        first, used = 0, tuple(0 for _ in self.parts)
        for number, stage in enumerate(self.stages):
            stop = None if stage.examples is None else first + stage.examples
            while stop is None or first < stop:
                left = [
                    0.0 if part.most is not None and part.most <= n else weight
                    for part, n, weight in zip(self.parts, used, self._weights[number], strict=True)
                ]
                if not any(left):
                    return first
                self._segments.append(_Segment(first, number, shares(left), used))
                ends = [end for part in range(len(self.parts)) if (end := self._end(part))]
                if stop is not None:
                    ends.append(stop - first)
                if not ends:
                    return None
                used, first = self._used(len(self._segments) - 1, min(ends)), first + min(ends)
        return first

    def _end(self, part: int) -> int | None:
        """How far into the last segment a part is drawn once more than it may be."""
        at = len(self._segments) - 1
        segment, most = self._segments[at], self.parts[part].most
        if most is None or not segment.shares[part]:
            return None
        block, rank = divmod(most - segment.used[part], segment.shares[part])
        parts, ranks = self._table(at, block)
        return block * BLOCK + int(np.flatnonzero((parts == part) & (ranks == rank))[0])

    def _used(self, at: int, count: int) -> tuple[int, ...]:
        """Items of each part that are used up after `count` examples of a segment."""
        segment = self._segments[at]
        blocks, rest = divmod(count, BLOCK)
        more = np.zeros(len(self.parts), np.int64)
        if rest:
            more = np.bincount(self._table(at, blocks)[0][:rest], minlength=len(self.parts))
        each = zip(segment.used, segment.shares, more.tolist(), strict=True)
        return tuple(used + blocks * share + one for used, share, one in each)

    def _table(self, at: int, block: int) -> _Table:
        """(BLOCK,) of each place of a block, its part and how many of that part came before."""
        if (at, block) not in self._tables:
            shares = np.array(self._segments[at].shares)
            order = Permutation(size=BLOCK, seed=key(self.seed, at), epoch=block)
            strata = order.many(np.arange(BLOCK))
            parts = np.searchsorted(np.cumsum(shares), strata, "right")
            ranks = np.empty(BLOCK, np.int32)
            ranks[np.argsort(parts, kind="stable")] = np.concatenate([np.arange(n) for n in shares])
            while len(self._tables) >= _TABLES:
                self._tables.pop(next(iter(self._tables)), None)
            table = parts.astype(np.int32), ranks
            self._tables[at, block] = table
            return table
        return self._tables[at, block]


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """A block's places divided by weights: largest remainders, one at least where there is any."""
    exact = np.array(weights) / sum(weights) * BLOCK
    found = np.maximum(np.floor(exact).astype(np.int64), np.array(weights) > 0)
    for at in np.argsort(-(exact - found), kind="stable")[: max(0, BLOCK - int(found.sum()))]:
        found[at] += 1
    while (over := int(found.sum()) - BLOCK) > 0:
        largest = int(found.argmax())
        found[largest] -= min(over, int(found[largest]) - 1)
    return tuple(found.tolist())


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
