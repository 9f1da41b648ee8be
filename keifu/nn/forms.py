"""Forms: how a pool keeps the values of an entry, as plain numbers or as 8-bit codes.

Codes are for keys and values of attention: a head's values of a token are whole numbers from -127
to 127 times a scale of their own (absmax rounding: Dettmers et al. 2022, "LLM.int8()", section
2.1). They lie as the native kernels read them; see tiles_of_state.h there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

TILE = 16
"""Places that lie together; a head is filled up to a multiple of it, too."""
MIDDLE, MOST = 128, 127
CODED = torch.int8
"""The type that asks for codes; what cannot be coded is then bfloat16."""

Places = Tensor | slice


class Form(Protocol):
    """Values of one entry at numbered places."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one value."""

    @property
    def dtype(self) -> torch.dtype:
        """In which values are read."""

    @property
    def bytes(self) -> int:
        """A place takes."""

    @property
    def together(self) -> int:
        """Places that lie together, so that a page is a multiple of it."""

    def empty(self, places: int, device: torch.device) -> Tensor:
        """Room, not written to."""

    def put(self, storage: Tensor, at: Places, new: Tensor) -> None:
        """Write values (n, *shape)."""

    def get(self, storage: Tensor, at: Places) -> Tensor:
        """Read values (n, *shape)."""

    def move(self, storage: Tensor, source: Places, target: Places) -> None:
        """Copy values from some places to others."""


@dataclass(frozen=True)
class Plain:
    """Numbers of one type: storage (places, *shape)."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """As many numbers as the shape has."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def together(self) -> int:
        """Each is by itself."""
        return 1

    def empty(self, places: int, device: torch.device) -> Tensor:
        """(places, *shape)."""
        return torch.empty(places, *self.shape, dtype=self.dtype, device=device)

    def put(self, storage: Tensor, at: Places, new: Tensor) -> None:
        """Rounded to the type."""
        storage[at] = new.to(self.dtype)

    def get(self, storage: Tensor, at: Places) -> Tensor:
        """A view where the places follow each other."""
        return storage[at]

    def move(self, storage: Tensor, source: Places, target: Places) -> None:
        """Bit by bit."""
        storage[target] = storage[source].clone()


@dataclass(frozen=True)
class Coded:
    """8-bit codes with a scale a head: storage (tiles, heads, bytes of a head's tile) uint8.

    Args:
        shape: (heads, width).
        reading: "keys", multiplied along their width, or "values", summed over places.
    """

    shape: tuple[int, int]
    reading: str

    @property
    def dtype(self) -> torch.dtype:
        """What is computed with besides 8-bit state."""
        return torch.bfloat16

    @property
    def width(self) -> int:
        """Codes of a head."""
        return -(-self.shape[1] // TILE) * TILE

    @property
    def bytes(self) -> int:
        """Codes and a float32 a head."""
        return self.shape[0] * (self.width + 4)

    @property
    def together(self) -> int:
        """A tile."""
        return TILE

    def empty(self, places: int, device: torch.device) -> Tensor:
        """Whole tiles, on a processor."""
        if device.type != "cpu":
            raise ValueError(f"codes are kept on processors, not on {device}")
        size = TILE * (self.width + 4)
        return torch.empty(places // TILE, self.shape[0], size, dtype=torch.uint8)

    def put(self, storage: Tensor, at: Places, new: Tensor) -> None:
        """Rounded to the nearest codes."""
        x = new.float()
        most = x.abs().amax(-1, keepdim=True)
        inverse = torch.where(most > 2**-110, MOST / most, 0.0)
        codes = torch.nn.functional.pad((x * inverse).round(), (0, self.width - self.shape[1]))
        self._lay(storage, at, codes.nan_to_num() + MIDDLE, most[..., 0] / MOST)

    def get(self, storage: Tensor, at: Places) -> Tensor:
        """As bfloat16."""
        codes, scales = self._taken(storage, at)
        return ((codes.float() - MIDDLE) * scales[..., None])[..., : self.shape[1]].to(self.dtype)

    def move(self, storage: Tensor, source: Places, target: Places) -> None:
        """Code by code."""
        self._lay(storage, target, *self._taken(storage, source))

    def _parts(self, storage: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of keys (tiles, heads, fours, TILE, 4) or of values (tiles, heads, 4, sixteens,
        TILE, 4), and scales (tiles, heads, TILE)."""
        size = TILE * self.width
        parts = (-1, TILE, 4) if self.reading == "keys" else (4, -1, TILE, 4)
        return storage[..., :size].unflatten(-1, parts), storage[..., size:].view(torch.float32)

    def _taken(self, storage: Tensor, at: Places) -> tuple[Tensor, Tensor]:
        codes, scales = self._parts(storage)
        tile, slot = _apart(at)
        if self.reading == "keys":
            found = codes[tile, :, :, slot].flatten(2)
        else:
            found = codes[tile, :, slot // 4, :, :, slot % 4].flatten(2)
        return found, scales[tile, :, slot]

    def _lay(self, storage: Tensor, at: Places, codes: Tensor, scales: Tensor) -> None:
        kept, kept_scales = self._parts(storage)
        (tile, slot), codes = _apart(at), codes.to(torch.uint8)
        if self.reading == "keys":
            kept[tile, :, :, slot] = codes.unflatten(-1, (-1, 4))
        else:
            kept[tile, :, slot // 4, :, :, slot % 4] = codes.unflatten(-1, (-1, TILE))
        kept_scales[tile, :, slot] = scales


def form(shape: tuple[int, ...], dtype: torch.dtype, reading: str | None = None) -> Form:
    """How an entry is kept in a pool of this type."""
    if dtype != CODED:
        return Plain(shape, dtype)
    if reading is None or len(shape) != 2:
        return Plain(shape, torch.bfloat16)
    return Coded((shape[0], shape[1]), reading)


def _apart(at: Places) -> tuple[Tensor, Tensor]:
    """Tile and slot in it, of each place."""
    index = torch.arange(at.start, at.stop) if isinstance(at, slice) else at
    return index // TILE, index % TILE
