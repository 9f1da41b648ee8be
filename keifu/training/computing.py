"""How a step is computed: its precision, and what is computed twice to spare memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from keifu.core.errors import KeifuError
from keifu.nn.pair import PairModule
from keifu.nn.stack import StackModule

PRECISIONS = ("float32", "bf16")


def at_precision(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Around a forward pass: bf16 multiplies in bfloat16; weights, sums and losses stay float32."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


@contextmanager
def recomputed(model: nn.Module, on: bool = True) -> Iterator[None]:
    """Within this a block keeps its input alone, and runs again for its gradient.

    Chen et al. 2016 (Training Deep Nets with Sublinear Memory Cost), with a segment a block.

    Raises:
        KeifuError: the model has no blocks.
    """
    blocks = _blocks(model) if on else []
    if on and not blocks:
        raise KeifuError(f"a {type(model).__name__} has no blocks to compute again")
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@contextmanager
def compiled(model: nn.Module, on: bool = True) -> Iterator[None]:
    """Within this torch compiles each block, for every length of rows that comes.

    Raises:
        KeifuError: the model has no blocks.
    """
    blocks = _blocks(model) if on else []
    if on and not blocks:
        raise KeifuError(f"a {type(model).__name__} has no blocks to compile")
    for block in blocks:
        block.compile()
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None


def _blocks(model: nn.Module) -> list[nn.Module]:
    if isinstance(model, PairModule):
        return [*model.encoder.blocks, *model.decoder.blocks]
    return list(model.blocks) if isinstance(model, StackModule) else []
