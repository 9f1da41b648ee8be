"""Stacked matrices behind a store: one an expert, resident, packed, or read when it is used.

Resident: one parameter. Packed: runs of rows in a weight format, which may lie in a mapped file.
Bound: nothing is held; a store gives an expert's matrix each time the expert is used, so a model
of any size runs in the memory of the experts that a text needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from keifu.nn.kernels import products
from keifu.nn.kernels.formats import Packed
from keifu.nn.linear import Weight
from keifu.nn.part import parameter

Store = Callable[[int], Tensor | Packed]
"""Expert number -> its matrix (outputs, inputs), dense or packed."""


class Stacked(Weight):
    """`count` matrices (outputs, inputs), one under the other: expert e is one run of rows."""

    def __init__(self, count: int, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__(count * outputs, inputs)
        self.count, self.each = count, outputs
        self.bias = parameter(count, outputs) if bias else None
        self.store: Store | None = None

    def bind(self, store: Store) -> None:
        """Hold nothing: ask the store for an expert's matrix when it is used."""
        self.store, self.weight, self.pieces = store, None, ()

    def matrix(self, expert: int) -> Tensor | list[Packed]:
        """One expert's: dense (outputs, inputs), or packed pieces that lie one under the other."""
        start, stop = expert * self.each, (expert + 1) * self.each
        if self.weight is not None:
            return self.weight[start:stop]
        if self.store is None:
            return _rows(self.pieces, start, stop)
        found = self.store(expert)
        return [found] if isinstance(found, Packed) else found

    def forward(self, expert: int, x: Tensor) -> Tensor:
        """x (tokens, inputs) through one expert -> (tokens, outputs)."""
        found = self.matrix(expert)
        if isinstance(found, Tensor):
            y = products.dense(x, found)
        else:
            y = products.packed(x, found, ())
        return y if self.bias is None else y + self.bias[expert].to(y.dtype)

    def grouped(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Every expert over its own tokens.

        x (choices, inputs) sorted by expert, sizes: choices of each expert -> (choices, outputs).
        One call for all experts where most are used and PyTorch has a kernel for it, which saves a
        twentieth to a sixth of the time; else one product a used expert.
        """
        if self._together(x, sizes):
            assert self.weight is not None
            wide = self.weight.view(self.count, self.each, self.inputs).transpose(1, 2)
            ends = torch.tensor(sizes, device=x.device).cumsum(0).to(torch.int32)
            return F.grouped_mm(x.to(wide.dtype), wide, offs=ends).to(x.dtype)
        parts = enumerate(x.split(list(sizes)))
        found = [self(expert, part) for expert, part in parts if part.shape[0]]
        return torch.cat(found) if found else self(0, x)

    def each_by(self, x: Tensor, expert: Tensor | None) -> Tensor:
        """Products whose shapes do not depend on who was chosen, so that they can be recorded.

        Args:
            x: (choices, inputs), and expert: (choices,) which one each goes through; or expert
                None and x (count or 1, tokens, inputs): every expert over its own tokens.

        Returns:
            (choices, outputs), or (count, tokens, outputs).
        """
        whole = self._stack(x.dtype, expert)
        if expert is None:
            y = x @ whole.transpose(1, 2)
            return y if self.bias is None else y + self.bias[:, None].to(y.dtype)
        y = (whole @ x[..., None]).squeeze(-1)
        return y if self.bias is None else y + self.bias[expert].to(y.dtype)

    def _stack(self, dtype: torch.dtype, expert: Tensor | None) -> Tensor:
        """(count, outputs, inputs), or the matrices of some experts (choices, outputs, inputs)."""
        if self.weight is not None:
            dense = self.weight.view(self.count, self.each, self.inputs)
            return (dense if expert is None else dense[expert]).to(dtype)
        (piece,) = self.pieces
        data = piece.data.view(self.count, self.each, -1)
        return piece.format.dequantize(data if expert is None else data[expert], dtype)

    @property
    def whole(self) -> bool:
        """Whether one tensor holds all experts."""
        return self.weight is not None or len(self.pieces) == 1

    def _together(self, x: Tensor, sizes: Sequence[int]) -> bool:
        """Whether one call does it: its kernel wants dense rows of whole 16 bytes, no float64."""
        if self.weight is None or self.bias is not None:
            return False
        if self.weight.dtype not in (torch.float32, torch.bfloat16):
            return False
        size = self.weight.dtype.itemsize
        whole = not (self.inputs * size % 16 or self.each * size % 16)
        return whole and sum(n > 0 for n in sizes) * 4 >= self.count

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All experts' rows (count * outputs, inputs); of a bound one, read for this."""
        if self.store is None:
            return super().dense(dtype)
        each = [self.store(expert) for expert in range(self.count)]
        return torch.cat(
            [m.dequantize(dtype) if isinstance(m, Packed) else m.to(dtype) for m in each]
        )


def _rows(pieces: Sequence[Packed], start: int, stop: int) -> list[Packed]:
    """Rows start...stop of pieces that lie one under the other, still packed."""
    found, at = [], 0
    for piece in pieces:
        rows = piece.shape[0]
        a, b = max(start - at, 0), min(stop - at, rows)
        if a < b:
            found.append(Packed(piece.data[a:b], piece.format, piece.cols))
        at += rows
    return found
