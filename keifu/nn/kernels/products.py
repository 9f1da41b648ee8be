"""Products with dense and packed weights: how many rows, which format, which device.

Many tokens: a packed weight is expanded to bf16 for the moment of one matrix product. Few tokens:
native kernels, where this machine has them, through `inference`'s plans.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from keifu.nn.kernels.formats import Packed


def decode(piece: Packed, dtype: torch.dtype) -> Tensor:
    """A packed matrix as a dense one (rows, cols)."""
    return piece.dequantize(dtype)


def dense(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., inputs) @ weight.T in the weight's precision, returned in x's."""
    if x.dtype == weight.dtype:
        return F.linear(x, weight)
    return F.linear(x.to(weight.dtype), weight).to(x.dtype)


def packed(x: Tensor, piece: Packed) -> Tensor:
    """x (..., inputs) @ piece.T with bf16 products, returned in x's dtype."""
    return dense(x, decode(piece, torch.bfloat16))
