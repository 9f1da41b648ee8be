"""The step: what every block needs to know about the tokens that run now.

A batch is ragged: the tokens of all rows lie one after another, `(tokens, width)`, and `offsets`
says where each row begins. There is no padding anywhere, so no mixer ever sees any.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from keifu.nn.masks import UNMARKED, Landmarks

T = TypeVar("T")


Emit = Callable[[str, Tensor], None]
"""Takes a named auxiliary loss or statistic."""


def ignore(name: str, value: Tensor) -> None:
    """The default for `emit`: nobody asked."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """A frozen description of one pass over the blocks.

    Legend of shapes: tokens = all rows together, R = rows.
    """

    positions: Tensor
    """(tokens,) position of each token in its own request."""
    offsets: tuple[int, ...]
    """(R + 1) row r is tokens offsets[r] to offsets[r + 1]."""
    limits: tuple[int, ...]
    """(R) the length each request may reach: fixes length-dependent rotary scaling."""
    landmarks: tuple[Landmarks, ...] = ()
    """(R) places of each row that masks and poolings speak of; empty: none."""
    coarse: tuple[int, ...] = ()
    """(R) what lies at positions below this may be computed in fewer bits; empty: nothing may."""
    segments: Tensor | None = None
    """(tokens,) segment (token type) ids where the input takes them."""
    kinds: Mapping[str, Tensor] = field(default_factory=dict)
    """Further ids (tokens,) that the input takes, by name (ERNIE's task types)."""
    memories: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """By name, one (length, width) tensor a row: encoder outputs and the like."""
    shared: Mapping[str, nn.Module] = field(default_factory=dict)
    """The stack's shared parts, by name (T5's bias table)."""
    compute: torch.dtype | None = None
    """What branches compute in; the residual stream keeps its own dtype. None: as it comes."""
    emit: Emit = ignore
    """Auxiliary losses and statistics go here."""
    _terms: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many requests the batch holds."""
        return len(self.offsets) - 1

    @property
    def device(self) -> torch.device:
        """Where the step runs."""
        return self.positions.device

    def span(self, row: int) -> slice:
        """The tokens of one row."""
        return slice(self.offsets[row], self.offsets[row + 1])

    def lengths(self) -> list[int]:
        """Tokens of each row in this step."""
        return [b - a for a, b in zip(self.offsets, self.offsets[1:], strict=False)]

    def marks(self, row: int) -> Landmarks:
        """The row's landmarks."""
        return self.landmarks[row] if self.landmarks else UNMARKED

    def term(self, key: Hashable, make: Callable[[], T]) -> T:
        """A term that several blocks need (rotary tables), computed once a step by the first."""
        if key not in self._terms:
            self._terms[key] = make()
        found: T = self._terms[key]
        return found

    def known(self) -> Mapping[Hashable, object]:
        """The terms so far."""
        return self._terms

    def know(self, key: Hashable, value: object) -> None:
        """Give a term that is known already."""
        self._terms[key] = value


def readable(x: Tensor) -> bool:
    """Whether values of x may decide what runs: not those of "meta", nor while a step is compiled
    or recorded, which has to hold for all values."""
    return not (x.is_meta or torch.compiler.is_compiling())


def fresh_step(
    lengths: list[int],
    device: torch.device | str = "cpu",
    *,
    segments: Tensor | None = None,
    kinds: Mapping[str, Tensor] | None = None,
    memories: Mapping[str, tuple[Tensor, ...]] | None = None,
    landmarks: Sequence[Landmarks] = (),
    emit: Emit = ignore,
) -> Step:
    """A step over whole sequences that start at position 0, as in training or scoring."""
    offsets = [0]
    for n in lengths:
        offsets.append(offsets[-1] + n)
    parts = [torch.arange(n, device=device) for n in lengths]
    positions = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long, device=device)
    return Step(
        positions=positions,
        offsets=tuple(offsets),
        limits=tuple(lengths),
        segments=segments,
        kinds=kinds or {},
        memories=memories or {},
        landmarks=tuple(landmarks),
        emit=emit,
    )
