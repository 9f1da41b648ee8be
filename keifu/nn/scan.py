"""Linear recurrences h_t = a_t h_(t-1) + b_t over ragged rows, many tokens at once.

Products of decays are never divided by, so a decay of zero, or a long run of small ones, is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FEW = 8
"""Up to so many moments run one after another."""


def linear_scan(
    decay: Tensor, new: Tensor, start: Tensor, lengths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Every state of every row, with gradients of all three.

    The tokens of all rows are cut into blocks of about their square root; the moments of a block
    run one after another in all blocks at once, then the blocks' ends in the same way (Blelloch
    1990). So n tokens take about 2 sqrt(n) steps, each over sqrt(n) tokens, and three passes.

    Args:
        decay, new: (tokens, ...) the rows one after another, `lengths` long.
        start: (rows, ...) the state before each row.

    Returns:
        (tokens, ...) the states and (rows, ...) each row's last; one without tokens keeps its own.
    """
    if 0 in lengths:
        live = torch.tensor([row for row, n in enumerate(lengths) if n], device=new.device)
        states, last = linear_scan(decay, new, start[live], [n for n in lengths if n])
        return states, start.index_copy(0, live, last)
    wide = torch.promote_types(new.dtype, start.dtype)  # a state keeps its own precision
    decay, new = decay.to(wide), new.to(wide)
    ends = torch.tensor(lengths, device=new.device).cumsum(0)
    firsts = torch.cat([ends.new_zeros(1), ends[:-1]])
    # A row's first token takes the row's start and nothing from the row before it.
    new = new.index_put((firsts,), new[firsts] + decay[firsts] * start)
    if max(lengths) == 1:
        return new, new
    decay = decay.index_fill(0, firsts, 0.0)
    every: Tensor = _Scan.apply(decay, new)  # type: ignore[no-untyped-call]
    return every, every[ends - 1]


class _Scan(torch.autograd.Function):
    """From h_-1 = 0. The gradient is the same recurrence backwards."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, new: Tensor) -> Tensor:
        states = _blocks(decay, new)
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        decay, states = ctx.saved_tensors
        # d_t = g_t + a_(t+1) d_(t+1); what a_t changes is d_t h_(t-1).
        after = torch.cat([decay[1:], torch.zeros_like(decay[:1])])
        new = _blocks(after.flip(0), grads[0].flip(0)).flip(0)
        before = torch.cat([torch.zeros_like(states[:1]), states[:-1]])
        return new * before, new


def _blocks(decay: Tensor, new: Tensor) -> Tensor:
    """Every h_t from h_-1 = 0: decay and new (tokens, ...)."""
    count = new.shape[0]
    if count <= FEW:
        states = new.clone()
        for t in range(1, count):
            states[t].addcmul_(decay[t], states[t - 1])
        return states
    size = math.isqrt(count - 1) + 1
    blocks = -(-count // size)
    shape = (blocks * size - count, *new.shape[1:])
    states = torch.cat([new, new.new_zeros(shape)]).unflatten(0, (blocks, size))
    passed = torch.cat([decay, decay.new_zeros(shape)]).unflatten(0, (blocks, size))
    for t in range(1, size):
        states[:, t].addcmul_(passed[:, t], states[:, t - 1])
        passed[:, t].mul_(passed[:, t - 1])
    ends = _blocks(passed[:, -1].contiguous(), states[:, -1].contiguous())
    states[1:].addcmul_(passed[1:], ends[:-1, None])
    whole: Tensor = states.flatten(0, 1)
    return whole[:count]
