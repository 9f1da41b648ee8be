"""A weight format with one scale a row: fp8, as matrix units of GPUs take it.

Such matrices are made when a model is loaded; no file holds them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.nn.kernels.formats import Format

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of E4M3 (Micikevicius et al. 2022, arXiv 2209.05433, table 1)."""
TAIL = 16
"""Bytes after a row's codes: its scale as a float32, and zeros, so that rows begin at multiples of
16 bytes, as the matrix units ask."""


@dataclass(frozen=True)
class Eight(Format):
    """A row of E4M3 codes, then its scale."""

    def row_bytes(self, cols: int) -> int:
        """A byte a value, and the tail."""
        if cols % TAIL:
            raise KeifuError(f"fp8 stores rows of whole {TAIL}s of values, not of {cols}")
        return cols + TAIL

    def parts(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (..., cols) as E4M3, a view, and scales (..., 1) float32."""
        scale = raw[..., -TAIL : -TAIL + 4].contiguous().view(torch.float32)
        return raw[..., :-TAIL].view(E4M3), scale

    def finite(self, raw: Tensor) -> bool:
        """Whether all scales are finite and no code is NaN."""
        codes, scale = self.parts(raw)
        return bool(scale.isfinite().all()) and not bool(codes.float().isnan().any())

    def dequantize(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """raw (..., row bytes) uint8 -> (..., cols)."""
        codes, scale = self.parts(raw)
        return (codes.float() * scale).to(dtype)

    def quantize(self, x: Tensor) -> Tensor:
        """x (..., cols) -> (..., row bytes) uint8: a row's largest magnitude becomes 448."""
        self.row_bytes(x.shape[-1])
        x = x.float()
        if not bool(x.isfinite().all()):
            raise KeifuError("fp8 cannot hold weights that are not finite")
        codes, scale = scaled(x)
        tail = torch.zeros(*x.shape[:-1], TAIL, dtype=torch.uint8, device=x.device)
        tail[..., :4] = scale.contiguous().view(torch.uint8)
        return torch.cat([codes.view(torch.uint8), tail], dim=-1)


def scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., cols) as E4M3 codes and scales (..., 1) float32."""
    scale = x.abs().amax(-1, keepdim=True).float() / LARGEST
    return (x / scale.clamp(min=1e-12)).clamp(-LARGEST, LARGEST).to(E4M3), scale


def _never(raw: Tensor) -> Tensor:
    raise NotImplementedError("fp8 is decoded by rows")


FP8 = Eight("fp8", 1, 1, _never)
"""The format."""


def products(x: Tensor, raw: Tensor) -> Tensor:
    """x (tokens, cols) @ rows.T on fp8 matrix units -> (tokens, rows) bfloat16.

    x gets a scale a token, so activations are rounded to 3 bits of mantissa, too.
    """
    codes, scale = FP8.parts(raw)
    given, by = scaled(x)
    return torch._scaled_mm(
        given, codes.t(), scale_a=by, scale_b=scale.t(), out_dtype=torch.bfloat16
    )


def units(device: torch.device) -> bool:
    """Whether a device has them: compute capability 8.9."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
