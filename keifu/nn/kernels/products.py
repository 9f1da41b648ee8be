"""Products with dense and packed weights in PyTorch: one matrix product for many tokens.

A packed weight is expanded for the moment of the product, by native kernels where it is tiled for
them. On the processor, steps of few tokens do not come here: they run on a tape
(`inference.plans`). On a device they are compiled (`inference.device`), where decoding is part of
the product's own loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from keifu.nn.kernels import formats_rows, scans, tiles, trained
from keifu.nn.kernels.formats import Packed

FEW = 2
"""Tokens whose products with packed weights are sums that decode what they read; for more, the
matrix is decoded once and goes through the matrix units."""


def decode(pieces: Sequence[Packed], tiled: Sequence[tiles.Tiled], dtype: torch.dtype) -> Tensor:
    """Packed pieces, stacked by rows, as one dense matrix (rows, cols)."""
    if not tiled or dtype not in (torch.float32, torch.bfloat16):
        dense = [p.dequantize(dtype) for p in pieces]
        return dense[0] if len(dense) == 1 else torch.cat(dense)
    rows = [t.rows for t in tiled]
    out = torch.empty(sum(rows), tiled[0].cols, dtype=dtype)
    for piece, part in zip(tiled, out.split(rows), strict=True):
        tiles.dequantize(piece, part)
    return out


STEPS, LONG = ((16, 4), (128, 16), (512, 32)), 128
"""Up to so many rows their number is a multiple of this; above, of that."""


def dense(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., inputs) @ weight.T in the weight's precision, returned in x's."""
    if x.dim() == 2 and trained.multiplies(x, weight):
        return trained.multiplied(x, weight)
    if x.dim() == 2 and scans.multiplies(x, weight):
        return scans.multiplied(x, weight).to(x.dtype)
    if x.dtype == weight.dtype:
        return _rounded(x, weight)
    return _rounded(x.to(weight.dtype), weight).to(x.dtype)


def _rounded(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T over a few more rows, so that there are few numbers of rows.

    oneDNN compiles a kernel for every shape and keeps 1024 of them at 0.5 MB each: a server that
    reads texts of all lengths would grow by 0.6 GB, and wait 2 ms for each new one.
    """
    rows = x.shape[0]
    if x.dim() != 2 or x.device.type != "cpu" or rows <= 4 or torch.is_grad_enabled():
        return F.linear(x, weight)
    more = -rows % next((step for most, step in STEPS if rows <= most), LONG)
    return F.linear(F.pad(x, (0, 0, 0, more)), weight)[:rows] if more else F.linear(x, weight)


def packed(x: Tensor, pieces: Sequence[Packed], tiled: Sequence[tiles.Tiled]) -> Tensor:
    """x (..., inputs) @ the pieces' rows.T with bf16 products, returned in x's dtype."""
    if all(p.format is formats_rows.FP8 for p in pieces) and formats_rows.units(x.device):
        found = [formats_rows.products(x.flatten(0, -2), p.data) for p in pieces]
        whole: Tensor = torch.cat(found, -1).view(*x.shape[:-1], -1)
        return whole.to(x.dtype)
    if torch.compiler.is_compiling() and x.dim() == 2 and x.shape[0] <= FEW:
        return torch.cat([_fused(x, p) for p in pieces], -1)
    return dense(x, decode(pieces, tiled, torch.bfloat16))


def _fused(x: Tensor, piece: Packed) -> Tensor:
    """x (tokens, inputs) @ rows.T as one sum over decoded values, which a compiler never stores."""
    return (x.float()[:, None] * piece.dequantize(torch.float32)).sum(-1).to(x.dtype)
