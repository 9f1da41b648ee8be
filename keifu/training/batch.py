"""Batches: rows of tokens one after another, never padded; pairs of them; shuffled items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self, TypeVar

import torch
from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.nn.masks import Landmarks
from keifu.nn.step import Emit, Step, fresh_step, ignore

Row = Sequence[int] | Tensor
B = TypeVar("B")
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sequences:
    """Rows of token ids. A document is a row: nothing attends or carries across rows."""

    ids: Tensor
    """(tokens,) the rows one after another."""
    lengths: tuple[int, ...]
    labels: Tensor | None = None
    """(tokens,) one a token or (rows,) one a row; IGNORE where there is none."""
    segments: Tensor | None = None
    """(tokens,) token types, for inputs that take them."""
    landmarks: tuple[Landmarks, ...] = ()
    """One a row, for masks that speak of them; empty: none."""
    classes: Tensor | None = None
    """(rows,) a class of each row, where tokens have labels of their own."""
    dropped: int = 0
    """Examples that were left out of it, since there was nothing to learn from them."""

    def __post_init__(self) -> None:
        if any(n < 1 for n in self.lengths) or sum(self.lengths) != self.ids.shape[0]:
            raise KeifuError(
                f"rows of {list(self.lengths)[:8]} tokens do not make {self.ids.shape[0]}: "
                "every row needs a token"
            )
        if len(self.landmarks) not in (0, len(self.lengths)):
            raise KeifuError(f"landmarks of {len(self.landmarks)} rows for {len(self.lengths)}")
        sizes = (len(self.lengths), self.ids.shape[0])
        if self.labels is not None and self.labels.shape[0] not in sizes:
            raise KeifuError(
                f"{self.labels.shape[0]} labels fit neither {sizes[0]} rows nor {sizes[1]} tokens"
            )

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        labels: Sequence[int] | Sequence[Row] | None = None,
        segments: Sequence[Row] | None = None,
        landmarks: Sequence[Landmarks] = (),
    ) -> Self:
        """From lists or vectors of ids; labels one a row, or a list for each row."""
        lengths = tuple(len(row) for row in rows)
        marks = None
        if labels is not None:
            each = [torch.as_tensor(label) for label in labels]
            marks = torch.stack(each) if each and each[0].dim() == 0 else torch.cat(each)
        return cls(
            ids=_joined(rows),
            lengths=lengths,
            labels=marks,
            segments=None if segments is None else _joined(segments),
            landmarks=tuple(landmarks),
        )

    def step(self, emit: Emit = ignore) -> Step:
        """The step that runs all rows from position 0; `emit` hears what layers say."""
        return fresh_step(
            list(self.lengths),
            self.ids.device,
            segments=self.segments,
            landmarks=self.landmarks,
            emit=emit,
        )

    def firsts(self) -> Tensor:
        """(rows,) index of each row's first token."""
        size = torch.tensor(self.lengths, device=self.ids.device)
        return size.cumsum(0) - size

    def lasts(self) -> Tensor:
        """(rows,) index of each row's last token."""
        return torch.tensor(self.lengths, device=self.ids.device).cumsum(0) - 1

    def grid(self) -> tuple[Tensor, Tensor]:
        """Ids (rows, longest) padded with 0 on the right, and the mask, True at tokens."""
        time = torch.arange(max(self.lengths), device=self.ids.device)
        mask = time < torch.tensor(self.lengths, device=self.ids.device)[:, None]
        ids = self.ids.new_zeros(mask.shape)
        ids[mask] = self.ids
        return ids, mask

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device."""
        return replace(
            self,
            ids=self.ids.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            segments=None if self.segments is None else self.segments.to(device),
            classes=None if self.classes is None else self.classes.to(device),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Sources and targets, row by row. A target begins with the token that decoding starts from."""

    source: Sequences
    target: Sequences

    def __post_init__(self) -> None:
        if len(self.source.lengths) != len(self.target.lengths):
            raise KeifuError(
                f"{len(self.source.lengths)} sources and {len(self.target.lengths)} targets"
            )
        if min(self.target.lengths, default=2) < 2:
            raise KeifuError("a target needs its start token and one more to predict")

    @classmethod
    def of(cls, sources: Sequence[Row], targets: Sequence[Row]) -> Self:
        """From lists or vectors of ids."""
        return cls(source=Sequences.of(sources), target=Sequences.of(targets))

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device."""
        return replace(self, source=self.source.to(device), target=self.target.to(device))


@dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """Texts and their matches, row by row."""

    first: Sequences
    second: Sequences

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device."""
        return replace(self, first=self.first.to(device), second=self.second.to(device))


def _joined(rows: Sequence[Row]) -> Tensor:
    each = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    return torch.cat(each) if each else torch.zeros(0, dtype=torch.long)


def shuffled(
    items: Sequence[Item], size: int, make: Callable[[list[Item]], B], *, seed: int = 0
) -> Callable[[int], B]:
    """Data for the loop: epoch after epoch of all items, each in an order of its own.

    Batch k has the items k * size to k * size + size - 1 of that one row of epochs, so a batch may
    end one epoch and begin the next. The order follows from the seed and the epoch's number alone.
    """
    if size < 1 or not items:
        raise KeifuError(f"{len(items)} items cannot make batches of {size}")

    @lru_cache(maxsize=2)
    def order(epoch: int) -> list[int]:
        made = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        return torch.randperm(len(items), generator=made).tolist()

    def batch(number: int) -> B:
        places = (divmod(i, len(items)) for i in range(number * size, (number + 1) * size))
        return make([items[order(epoch)[place]] for epoch, place in places])

    return batch
