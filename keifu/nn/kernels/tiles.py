"""Weights as the native kernels read them: tiled 4- to 8-bit formats, dense rows in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.nn.kernels import arena, native
from keifu.nn.kernels.formats import Packed

CODES: Mapping[str, int] = {"q4_0": 2, "q4_1": 3, "q8_0": 8, "q4_k": 12, "q6_k": 14}
"""Formats that the kernels tile, by GGUF's numbers."""
DENSE: Mapping[torch.dtype, int] = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
GROUP = 16
"""Rows that lie interleaved."""


@dataclass(frozen=True, eq=False)
class Tiled:
    """A matrix (rows, cols) that a tape can multiply with; `data` owns or shares its memory."""

    data: Tensor
    code: int
    rows: int
    cols: int

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        return self.data.numel() * self.data.element_size()

    @property
    def group_bytes(self) -> int:
        """Bytes of 16 rows."""
        if self.dense:
            return GROUP * self.cols * self.data.element_size()
        return self.data.numel() // -(-self.rows // GROUP)

    @property
    def dense(self) -> bool:
        """Whether the rows lie one after another, as in the file."""
        return self.code in DENSE.values()


def supported(weight: Packed | Tensor) -> bool:
    """Whether `tile` takes this weight."""
    if isinstance(weight, Tensor):
        return weight.dim() == 2 and weight.dtype in DENSE
    return len(weight.shape) == 2 and weight.format.name in CODES


def tiled_bytes(weight: Packed) -> int:
    """Bytes that a packed weight takes once tiled: its own, and at most 3 % more for wide rows."""
    code, (rows, cols) = CODES[weight.format.name], weight.shape
    size: int = native.library().kf_tiled_bytes(code, rows, cols)
    return size


def tile(
    weight: Packed | Tensor, *, order: Tensor | None = None, into: Tensor | None = None
) -> Tiled:
    """Lay a packed weight (rows, cols) out for the kernels; dense ones are taken as they lie.

    Args:
        order: (rows,) row order[i] of the weight becomes row i (packed weights only).
        into: uint8 memory of `tiled_bytes` for the result; None takes new memory.

    Raises:
        KeifuError: the format has no kernel.
    """
    if isinstance(weight, Tensor):
        if not supported(weight) or order is not None or into is not None:
            raise KeifuError(
                f"no kernel for a {weight.dtype} weight of shape {tuple(weight.shape)}: "
                "use a matrix of float32, float16 or bfloat16"
            )
        return Tiled(weight.detach().contiguous(), DENSE[weight.dtype], *weight.shape)
    if not supported(weight):
        raise KeifuError(f"no kernel for {weight.format.name}: use one of {', '.join(CODES)}")
    (rows, cols), code = weight.shape, CODES[weight.format.name]
    size = tiled_bytes(weight)
    out = arena.take(size) if into is None else into
    if out.dtype != torch.uint8 or out.numel() != size or not out.is_contiguous():
        raise ValueError(f"tiling needs {size} bytes in one piece, not {tuple(out.shape)}")
    if out.data_ptr() % 64:
        raise ValueError("tiled weights must begin at a multiple of 64 bytes")
    source = weight.data.contiguous()
    index = None
    if order is not None:
        index = order.to(torch.int32).contiguous()
        if index.shape != (rows,) or not bool(((index >= 0) & (index < rows)).all()):
            raise ValueError(f"an order of {tuple(index.shape)} does not fit {rows} rows")
    pointer = index.data_ptr() if index is not None else None
    _must(native.library().kf_pack(code, source.data_ptr(), pointer, rows, cols, out.data_ptr()))
    return Tiled(out, code, rows, cols)


def dequantize(weight: Tiled, out: Tensor) -> Tensor:
    """Decode into `out` (rows, cols), float32 or bfloat16, contiguous; returns it.

    Float32 values are those of the format's reference decoder, to the bit.
    """
    shaped = out.shape == (weight.rows, weight.cols) and out.is_contiguous()
    if not shaped or out.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"cannot decode ({weight.rows}, {weight.cols}) into {out.dtype} {tuple(out.shape)}"
        )
    floats = int(out.dtype == torch.float32)
    at = weight.data.data_ptr()
    _must(
        native.library().kf_unpack(
            weight.code, at, weight.rows, weight.cols, out.data_ptr(), floats
        )
    )
    return out


def _must(failed: int) -> None:
    if failed:
        raise MemoryError("the native kernels got no memory or no threads")
