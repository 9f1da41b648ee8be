"""Packing a model's matrices in fewer bits after it was loaded: its products, not its table."""

from __future__ import annotations

from torch import nn

from keifu.core.errors import unknown
from keifu.nn.kernels.formats import FORMATS, Format, Packed
from keifu.nn.kernels.formats_rows import FP8
from keifu.nn.linear import Linear
from keifu.nn.stacked import Stacked

KINDS = {"int8": FORMATS["q8_0"], "int4": FORMATS["q4_1"], "fp8": FP8}
"""What may be asked for: 8-bit integers with a scale for 32, 4-bit ones with a scale and an offset
for 32, 8-bit floats with a scale a row."""


def pack(model: nn.Module, kind: str) -> int:
    """Round every dense matrix of a model's linear layers and experts, one at a time.

    What is packed already stays, as do tables, routers and rows of a length that the format lacks.

    Returns:
        how many were packed.

    Raises:
        KeifuError: no such kind.
    """
    if kind not in KINDS:
        raise unknown("kind of quantisation", kind, KINDS)
    done = 0
    for module in model.modules():
        if type(module) in (Linear, Stacked) and _fits(module, KINDS[kind]):
            assert isinstance(module, Linear | Stacked)
            assert module.weight is not None
            data = KINDS[kind].quantize(module.weight.detach().float())
            module.pack([Packed(data, KINDS[kind], module.inputs)])
            done += 1
    return done


def _fits(module: nn.Module, format: Format) -> bool:
    assert isinstance(module, Linear | Stacked)
    whole = 16 if format is FP8 else format.block
    return module.weight is not None and module.inputs % whole == 0
