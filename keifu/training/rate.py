"""What a step costs in floating-point operations, and what share of the machine's peak that is."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from keifu.nn.attention import Attention
from keifu.nn.experts import Experts
from keifu.nn.heads import LMHead
from keifu.nn.pair import PairModule
from keifu.nn.stack import StackModule
from keifu.training.batch import Pairs, Sequences

_SIZE = 1024


def tokens(batch: Any) -> int:
    """Tokens of a batch, of sources and targets alike; 0 where a batch has none."""
    if isinstance(batch, Pairs):
        return sum(batch.source.lengths) + sum(batch.target.lengths)
    return sum(batch.lengths) if isinstance(batch, Sequences) else 0


class Operations:
    """Counts the operations of a step as Chowdhery et al. 2022 (PaLM, appendix B) do.

    6 a token and weight that multiplies it, and 12 * heads * head width * length a token and use
    of attention; what is computed again counts once. 0 where that is not known: models that are
    no stack and no pair of them, and experts, of which few multiply a token.
    """

    def __init__(self, model: nn.Module) -> None:
        self.sides: list[tuple[int, int]] = []
        stacks = (
            [model.encoder, model.decoder] if isinstance(model, PairModule)
            else [model] if isinstance(model, StackModule) else []
        )  # fmt: skip
        if not any(isinstance(part, Experts) for stack in stacks for part in _parts(stack)):
            self.sides = [_side(stack) for stack in stacks]

    def of(self, batch: Any) -> float:
        """Of one batch, forward and back."""
        rows = [batch.source, batch.target] if isinstance(batch, Pairs) else [batch]
        if len(rows) != len(self.sides) or not all(isinstance(row, Sequences) for row in rows):
            return 0.0
        return float(sum(
            6 * weights * sum(row.lengths) + 12 * width * sum(n * n for n in row.lengths)
            for (weights, width), row in zip(self.sides, rows, strict=True)
        ))  # fmt: skip


def _parts(stack: StackModule) -> list[Any]:
    return [part for block in stack.spec.blocks for part in block.branches().values()]


def _side(stack: StackModule) -> tuple[int, int]:
    """Weights that multiply a token, and heads * head width summed over uses of attention."""
    uses = stack.spec.order()
    weights = sum(_matrices(stack.blocks[use]) for use in uses)
    if stack.head is not None:
        weights += _matrices(stack.head)
        if isinstance(stack.spec.head, LMHead) and stack.spec.head.tied:
            weights += _matrices(stack.input.get_submodule("table"))
    mixers = [stack.spec.blocks[use].mixer for use in uses]
    width = sum(m.heads * m.head_width for m in mixers if isinstance(m, Attention))
    return weights, width


def _matrices(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.dim() > 1)


@lru_cache(maxsize=4)
def peak(device: torch.device, precision: str) -> float:
    """Operations a second of a product of two square matrices, the best of a few."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size = _SIZE if device.type == "cpu" else 8 * _SIZE
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        _done(device)
        start = time.perf_counter()
        a @ a
        _done(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _done(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
