"""The selective scan: h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t, y_t = C_t h_t + D x_t, gated.

Gu & Dao 2023, eq. 2 and 4. Native kernels run it where no gradient is asked for; here it is in
PyTorch, as a scan of many tokens at once or as a recurrence of few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from keifu.nn.kernels import scans
from keifu.nn.recurrent import Carry, walk
from keifu.nn.scan import linear_scan

CHUNK = 64
"""Tokens scanned at once: memory grows with this times the inner width times the states."""
MOMENTS = 4
"""Moments of the recurrence that cost as much as the scan of one chunk."""


def wide(x: Tensor) -> Tensor:
    """At least float32: what a recurrence is computed in, whatever the products are in."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """What one call works on; all of one dtype, at least float32. Legend: T = tokens of all rows.

    x and gate (T, inner), dt (T, inner) after softplus, b and c (T, states), poles
    (states, inner) negative, d (inner,).
    """

    x: Tensor
    dt: Tensor
    b: Tensor
    c: Tensor
    gate: Tensor
    poles: Tensor
    d: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """All of them."""
        return (self.x, self.dt, self.b, self.c, self.gate, self.poles, self.d)


def selective(
    given: Selection, start: Tensor, lengths: Sequence[int], *, native: bool = True
) -> tuple[Tensor, Tensor]:
    """Ragged rows of `lengths` tokens from their states `start` (rows, states, inner).

    Args:
        native: use the native kernels where they take such tensors.

    Returns:
        (T, inner) outputs, gated by silu(gate), and the states after each row.
    """
    if native and scans.takes(*given.tensors(), start):
        return scans.selective(*given.tensors(), start, lengths)
    chunks = sum(-(-n // CHUNK) for n in lengths)
    form = _recurrence if max(lengths) <= MOMENTS * chunks else _scanned
    y, last = form(given, start, lengths)
    return (y + given.d * given.x) * F.silu(given.gate), last


def _recurrence(given: Selection, start: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """One token of every row after another."""
    parts = (given.x, given.dt, given.b, given.c)
    widths = [p.shape[1] for p in parts]

    def cell(at: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        x, dt, b, c = at.split(widths, dim=1)
        h = torch.exp(dt[:, None] * given.poles) * carry[0] + (dt * x)[:, None] * b[..., None]
        return (c[:, None] @ h).squeeze(1), (h,)

    y, (last,) = walk(cell, torch.cat(parts, 1), lengths, (start,))
    return y, last


def _chunk(
    x: Tensor, dt: Tensor, b: Tensor, c: Tensor, poles: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    """One chunk of a row from h (states, inner): outputs (n, inner) and the state after it."""
    decay = torch.exp(dt[:, None] * poles)
    new = (dt * x)[:, None] * b[..., None]
    every, last = linear_scan(decay, new, h[None], [len(x)])
    return (c[:, None] @ every).squeeze(1), last[0]


def _scanned(given: Selection, start: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Row by row, the tokens of a chunk at once; training recomputes a chunk's states."""
    outs, last = [], []
    split = (t.split(list(lengths)) for t in (given.x, given.dt, given.b, given.c))
    for h, *row in zip(start, *split, strict=True):
        for x, dt, b, c in zip(*(t.split(CHUNK) for t in row), strict=True):
            if not len(x):
                continue
            if torch.is_grad_enabled():
                y, h = checkpoint(_chunk, x, dt, b, c, given.poles, h, use_reentrant=False)
            else:
                y, h = _chunk(x, dt, b, c, given.poles, h)
            outs.append(y)
        last.append(h)
    return torch.cat(outs), torch.stack(last)
