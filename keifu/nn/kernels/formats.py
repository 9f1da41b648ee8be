"""Packed weight formats (ggml's quantised types) and the value that holds a matrix in one.

A format stores every `block` consecutive values of a row in `nbytes` bytes. Decoding equals
ggml's reference to the last bit in float32; a file's bytes are kept as they are, so a packed
matrix may lie in a memory-mapped file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.nn.kernels import formats_32, formats_k, formats_k_encode

Blocks = Callable[[Tensor], Tensor]
CHUNK = 1 << 18
"""Values coded at a time: the temporaries stay in the processor's cache."""
LARGEST = 65504.0
"""Scales are float16, so no weight may be larger."""


@dataclass(frozen=True)
class Format:
    """How `block` values of a row become `nbytes` bytes; rows are whole blocks."""

    name: str
    block: int
    nbytes: int
    decode: Blocks
    """(n, nbytes) uint8 -> (n, block) float32."""
    encode: Blocks | None = None
    """(n, block) float32 -> (n, nbytes) uint8; None for a format that is only read."""
    scales: tuple[int, ...] = (0,)
    """Bytes of a block where a float16 scale or offset lies: all that can be NaN or infinite."""

    @property
    def bits(self) -> float:
        """Bits a value takes, scales included."""
        return self.nbytes * 8 / self.block

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row of `cols` values; an error where that is not whole blocks."""
        if cols % self.block:
            raise KeifuError(
                f"{self.name} stores rows of whole {self.block}-value blocks, not of {cols}: "
                + (
                    "use q8_0 or f16"
                    if self.block > 32 and cols % 32 == 0
                    else "keep it in f16, bf16 or f32"
                )
            )
        return cols // self.block * self.nbytes

    def finite(self, raw: Tensor) -> bool:
        """Whether all scales of raw (..., bytes) uint8 are finite: then all values are."""
        halves = raw.reshape(-1, self.nbytes).cpu().numpy()
        ones = 0x7C  # all bits of the exponent, in the upper of its two bytes
        return not any((halves[:, at + 1] & ones == ones).any() for at in self.scales)

    def dequantize(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """raw (..., blocks * nbytes) uint8 -> (..., blocks * block), decoded in float32."""
        if raw.dtype != torch.uint8 or not raw.dim() or raw.shape[-1] % self.nbytes:
            raise ValueError(f"{self.name}: not rows of {self.nbytes}-byte blocks: {raw.shape}")
        shape = (*raw.shape[:-1], raw.shape[-1] // self.nbytes * self.block)
        return _chunked(self.decode, raw.reshape(-1, self.nbytes), self.block, dtype).view(shape)

    def quantize(self, x: Tensor) -> Tensor:
        """x (..., cols) float -> (..., row_bytes) uint8; refuses NaN, infinity and |x| > 65504."""
        if self.encode is None:
            raise KeifuError(f"{self.name} can be read but not written: use {', '.join(WRITABLE)}")
        size = self.row_bytes(x.shape[-1])
        flat = x.detach().float().reshape(-1, self.block)
        if flat.numel() and not flat.abs().amax() <= LARGEST:  # NaN compares false
            at = int((~(flat.abs() <= LARGEST)).flatten().nonzero()[0])
            raise KeifuError(
                f"{self.name} cannot hold {flat.view(-1)[at]:g} (value {at} of shape "
                f"{tuple(x.shape)}): weights must be finite and at most {LARGEST:g}"
            )
        coded = _chunked(self.encode, flat, self.nbytes, torch.uint8)
        return coded.view(*x.shape[:-1], size)


def _chunked(function: Blocks, blocks: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """function over rows of `blocks`, some at a time, into a new (rows, width)."""
    if torch.compiler.is_compiling():  # which joins them to what reads the values
        return function(blocks).to(dtype)
    out = torch.empty(len(blocks), width, dtype=dtype, device=blocks.device)
    rows = CHUNK // max(width, blocks.shape[1])
    for start in range(0, len(blocks), rows):
        part = slice(start, start + rows)
        out[part] = function(blocks[part])
    return out


@dataclass(frozen=True, eq=False)
class Packed:
    """A matrix (or a stack of them) whose rows stay packed: data (..., row bytes) uint8."""

    data: Tensor
    format: Format
    cols: int

    def __post_init__(self) -> None:
        if self.data.dtype != torch.uint8 or self.data.dim() < 1:
            raise ValueError(f"packed data must be rows of bytes, not {self.data.dtype}")
        if self.data.shape[-1] != self.format.row_bytes(self.cols):
            raise ValueError(
                f"rows of {self.data.shape[-1]} bytes do not hold {self.cols} {self.format.name}"
            )

    @property
    def shape(self) -> torch.Size:
        """The shape once decoded."""
        return torch.Size((*self.data.shape[:-1], self.cols))

    @property
    def nbytes(self) -> int:
        """Bytes it takes packed."""
        return self.data.numel()

    def dequantize(self, dtype: torch.dtype = torch.float32, rows: slice | None = None) -> Tensor:
        """The values (or those of some rows), decoded in float32 and rounded to `dtype`."""
        return self.format.dequantize(self.data if rows is None else self.data[rows], dtype)

    def select(self, index: Tensor) -> Packed:
        """The rows `index` names, still packed: index (k,) -> (k, cols)."""
        if self.data.device.type == "cpu":  # a torch gather of bytes waits for its thread pool
            rows = torch.from_numpy(self.data.numpy().take(index.numpy(), axis=0))
        else:
            rows = self.data.index_select(0, index)
        return Packed(rows, self.format, self.cols)

    @classmethod
    def quantize(cls, x: Tensor, name: str) -> Packed:
        """Pack x (..., cols) in a format of the write list."""
        return cls(FORMATS[name].quantize(x), FORMATS[name], x.shape[-1])


FORMATS: Mapping[str, Format] = {
    format.name: format
    for format in (
        Format("q4_0", 32, 18, formats_32.decode_q4_0, formats_32.encode_q4_0),
        Format("q4_1", 32, 20, formats_32.decode_q4_1, formats_32.encode_q4_1, scales=(0, 2)),
        Format("q5_0", 32, 22, formats_32.decode_q5_0),
        Format("q5_1", 32, 24, formats_32.decode_q5_1, scales=(0, 2)),
        Format("q8_0", 32, 34, formats_32.decode_q8_0, formats_32.encode_q8_0),
        Format("q2_k", 256, 84, formats_k.decode_q2_k, scales=(80, 82)),
        Format("q3_k", 256, 110, formats_k.decode_q3_k, scales=(108,)),
        Format(
            "q4_k", 256, 144, formats_k.decode_q4_k, formats_k_encode.encode_q4_k, scales=(0, 2)
        ),
        Format("q5_k", 256, 176, formats_k.decode_q5_k, scales=(0, 2)),
        Format(
            "q6_k", 256, 210, formats_k.decode_q6_k, formats_k_encode.encode_q6_k, scales=(208,)
        ),
        Format("iq4_nl", 32, 18, formats_32.decode_iq4_nl),
        Format("iq4_xs", 256, 136, formats_k.decode_iq4_xs),
        Format("mxfp4", 32, 17, formats_32.decode_mxfp4, scales=()),
    )
}
"""Every packed format by its lower-case name; f32, f16 and bf16 are dense dtypes."""
WRITABLE = tuple(name for name, format in FORMATS.items() if format.encode)
"""The formats that `quantize` writes."""
