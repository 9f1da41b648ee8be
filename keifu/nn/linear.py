"""The one seam every weight matrix goes through: dense or packed, with deltas on named rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keifu.nn.kernels import products
from keifu.nn.kernels.formats import Packed
from keifu.nn.kernels.tiles import Tiled
from keifu.nn.part import parameter


class Delta(Protocol):
    """What an adapter adds to a product: y + delta(x) on the rows it names."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """x (tokens, inputs), y (tokens, outputs) -> (tokens, outputs)."""


class Weight(nn.Module):
    """A matrix (outputs, inputs): a dense parameter, or packed pieces stacked by rows.

    Base of `Linear` and `Embedding`. `weight` is the dense parameter, or None while the matrix
    is packed in `pieces`; a fused projection may hold pieces of different formats.
    """

    weight: nn.Parameter | None

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.outputs, self.inputs = outputs, inputs
        self.weight = parameter(outputs, inputs)
        self.pieces: tuple[Packed, ...] = ()
        self.tiles: tuple[Tiled, ...] = ()
        """The same rows laid out for native kernels, once a plan has asked for them."""

    def pack(self, pieces: Sequence[Packed]) -> None:
        """Hold packed rows instead of the dense parameter."""
        rows = sum(p.shape[0] for p in pieces)
        if rows != self.outputs or any(p.shape[1] != self.inputs for p in pieces):
            shapes = [tuple(p.shape) for p in pieces]
            raise ValueError(f"packed pieces {shapes} do not make ({self.outputs}, {self.inputs})")
        self.pieces, self.weight = tuple(pieces), None

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The whole matrix (outputs, inputs), decoded if it is packed."""
        if self.weight is not None:
            return self.weight.to(dtype)
        return products.decode(self.pieces, self.tiles, dtype)

    def project(self, x: Tensor) -> Tensor:
        """x (..., inputs) @ matrix.T -> (..., outputs) in x's dtype."""
        if self.weight is not None:
            return products.dense(x, self.weight)
        return products.packed(x, self.pieces, self.tiles)


class Linear(Weight):
    """y = x W^T + b, then every delta in order.

    `rows` names consecutive output rows ({"q": 576, "k": 192, "v": 192}), so that loading, export
    and adapters can speak of one projection inside a fused one.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = False,
        rows: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(outputs, inputs)
        self.bias = parameter(outputs) if bias else None
        self.rows = dict(rows or {})
        self.deltas: list[Delta] = []

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) -> (..., outputs)."""
        y = self.project(x)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        for delta in self.deltas:
            y = delta(x, y)
        return y


class Embedding(Weight):
    """A table (entries, width) read by row; a tied head projects with the same table."""

    def __init__(self, entries: int, width: int) -> None:
        super().__init__(entries, width)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (tokens,) -> (tokens, width); packed rows decode to float32."""
        if self.weight is not None:
            return F.embedding(ids, self.weight)
        if len(self.pieces) != 1:
            raise ValueError("an embedding table must be packed as one piece")
        return self.pieces[0].select(ids).dequantize(torch.float32)
