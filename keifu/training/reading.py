"""From numbered examples to an objective's batches: who is drawn, and by which chance.

    data = numbered(examples, 8, MaskedLM().reader(vocabulary), seed=0)
    Trainer(model, MaskedLM()).fit(data)

What is drawn for an example follows from the seed and its number alone, so that neither its batch
nor the process that asks nor a restart changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.data.example import Example, Examples
from keifu.nn.losses import IGNORE
from keifu.training.batch import Pairs, Sequences

B = TypeVar("B")
Random = np.random.Generator
_FAR = 1 << 20
"""Where another example is looked for if there are no epochs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """An example of the run with the chance that belongs to its number."""

    example: Example
    random: Random
    other: Callable[[], Example]
    """Another example of the same epoch, drawn by the same chance."""


Reader = Callable[[Sequence[Drawn]], B]
"""Makes an objective's batch of examples."""


def drawn(examples: Examples, number: int, seed: int = 0) -> Drawn:
    """The number-th example of a run and its chance."""
    random = np.random.default_rng(np.random.SeedSequence((seed, number)))

    def other() -> Example:
        epoch = examples.epoch
        if epoch is not None and epoch < 2:
            raise KeifuError("another example is needed, and there is only one")
        first = 0 if epoch is None else number // epoch * epoch
        found = first + int(random.integers((epoch or _FAR) - 1))
        return examples(found + (found >= number))

    return Drawn(example=examples(number), random=random, other=other)


def numbered(
    examples: Examples, size: int, reader: Reader[B], *, seed: int = 0
) -> Callable[[int], B]:
    """Data for the loop: batch k has the examples k * size to k * size + size - 1 of the run."""
    if size < 1:
        raise KeifuError(f"batches of {size} examples: 1 or more are needed")

    def batch(number: int) -> B:
        return reader([drawn(examples, n, seed) for n in range(number * size, (number + 1) * size)])

    return batch


def pieces(example: Example) -> list[list[int]]:
    """The ids of each of its documents."""
    found, at = [], 0
    ids = example.ids.tolist()
    for length in example.lengths:
        found.append(ids[at : at + length])
        at += length
    return [piece for piece in found if piece]


def kept(example: Example) -> list[list[int]]:
    """The labels of each of its documents: its ids, IGNORE where they are not to be learnt."""
    if example.keep is None:
        return pieces(example)
    hidden = np.where(example.keep, example.ids, IGNORE)
    return pieces(replace(example, ids=hidden, keep=None))


def merged(rows: Iterable[tuple[Sequences, bool]]) -> Sequences:
    """Batches as one; those with nothing to learn (False) are left out and counted.

    If none has anything, the first stays, with no item of its own, so that there is a batch.
    """
    every = list(rows)
    if not every:
        raise KeifuError("a batch needs an example")
    found = [row for row, teaches in every if teaches] or [every[0][0]]
    lost = sum(not teaches for _, teaches in every)
    return replace(_one(found), dropped=lost)


def _one(rows: Sequence[Sequences]) -> Sequences:
    if len(rows) == 1:
        return rows[0]
    return Sequences(
        ids=torch.cat([row.ids for row in rows]),
        lengths=tuple(n for row in rows for n in row.lengths),
        labels=_all([row.labels for row in rows]),
        segments=_all([row.segments for row in rows]),
        classes=_all([row.classes for row in rows]),
        landmarks=tuple(mark for row in rows for mark in row.landmarks),
    )


def _all(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    if not there:
        return None
    if len(there) != len(parts):
        raise KeifuError("some rows of a batch have labels, segments or classes and others do not")
    return torch.cat(there)


def paired(rows: Iterable[tuple[Sequences, Sequences, bool]]) -> Pairs:
    """The same of sources and targets; what is left of a batch of nothing has no label."""
    every = list(rows)
    source = merged((one, teaches) for one, _, teaches in every)
    target = merged((other, teaches) for _, other, teaches in every)
    return Pairs(source=source, target=target)
