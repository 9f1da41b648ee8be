"""State-space token mixers: Mamba's selective SSM as a scan over many tokens or a recurrence.

h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t,  y_t = C_t h_t + D x_t   (Gu & Dao 2023, eq. 2 and 4)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keifu.nn.block import scoped
from keifu.nn.conv import ShortConv
from keifu.nn.linear import Linear
from keifu.nn.part import Initialised, Part, parameter
from keifu.nn.recurrent import Carry, walk
from keifu.nn.state import Entry, Fixed, Handle
from keifu.nn.step import Step

CHUNK = 64
"""Tokens scanned at once: memory grows with this times the inner width times the states."""
MOMENTS = 4
"""Moments of the recurrence that cost as much as the scan of one chunk."""


def scan(decay: Tensor, new: Tensor) -> Tensor:
    """h_t = decay_t * h_(t-1) + new_t from h_-1 = 0, by doubling (Hillis & Steele 1986).

    Args:
        decay: (tokens, ...), new: the same shape. Products of decays are never divided by, so a
            decay of zero, or a long run of small ones, is exact.

    Returns:
        (tokens, ...) every h_t.
    """
    reach = 1
    while reach < new.shape[0]:
        new = torch.cat([new[:reach], new[reach:] + decay[reach:] * new[:-reach]])
        decay = torch.cat([decay[:reach], decay[reach:] * decay[:-reach]])
        reach *= 2
    return new


@dataclass(frozen=True, kw_only=True)
class Mamba(Part):
    """Mamba's mixer (Gu & Dao 2023, section 3): gate, short convolution, selective SSM."""

    width: int
    inner: int
    states: int = 16
    """States of each inner channel (the paper's N)."""
    rank: int
    """Width that dt is projected up from."""
    kernel: int = 4
    conv_bias: bool = True
    bias: bool = False

    def build(self) -> nn.Module:
        """`into` with rows "x", "gate"; `conv`; `select` with rows "dt", "b", "c"; `dt`; `out`."""
        return _Mamba(self)

    @property
    def conv(self) -> ShortConv:
        """The short convolution before the SSM."""
        return ShortConv(width=self.inner, kernel=self.kernel, bias=self.conv_bias)

    def state(self) -> Mapping[str, Entry]:
        """The convolution's tail and the SSM's states, in float32."""
        tail = {f"conv.{name}": entry for name, entry in self.conv.state().items()}
        return tail | {"ssm": Fixed((self.inner, self.states))}


class _Mamba(Initialised):
    def __init__(self, spec: Mamba) -> None:
        super().__init__()
        self.spec = spec
        inner, rank, states = spec.inner, spec.rank, spec.states
        self.into = Linear(spec.width, 2 * inner, bias=spec.bias, rows={"x": inner, "gate": inner})
        self.conv = spec.conv.build()
        rows = {"dt": rank, "b": states, "c": states}
        self.select = Linear(inner, rank + 2 * states, rows=rows)
        self.dt = Linear(rank, inner, bias=True)
        self.log_a = parameter(inner, states)
        self.d = parameter(inner)
        self.out = Linear(inner, spec.width, bias=spec.bias)

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        """x (tokens, width) -> (tokens, width)."""
        x, gate = self.into(x).chunk(2, dim=-1)
        x = F.silu(self.conv(x, step, scoped(state, "conv")))
        dt, b, c = self.select(x).split(list(self.select.rows.values()), dim=-1)
        dt = F.softplus(self.dt(dt).float())
        shape = (step.rows, self.spec.inner, self.spec.states)
        start = x.new_zeros(shape, dtype=torch.float32) if state is None else state.get("ssm")
        y, last = self._ssm(x.float(), dt, b.float(), c.float(), start, step.lengths())
        if state is not None:
            state.set("ssm", last)
        out: Tensor = self.out((y * F.silu(gate.float())).to(x.dtype))
        return out

    def _ssm(
        self, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, start: Tensor, lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """x and dt (tokens, inner), b and c (tokens, states), start (rows, inner, states)."""
        poles = -torch.exp(self.log_a.float())
        chunks = sum(-(-n // CHUNK) for n in lengths)
        form = _recurrence if max(lengths) <= MOMENTS * chunks else _scanned
        y, last = form(x, dt, b, c, poles, start, lengths)
        return y + self.d.float() * x, last

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Poles 1...N (S4D-real), dt log-uniform from 0.001 to 0.1, D one (section 3.6)."""
        self.log_a.copy_(torch.arange(1, self.spec.states + 1).log().expand_as(self.log_a))
        self.d.fill_(1.0)
        dt = torch.empty(self.spec.inner).uniform_(
            math.log(1e-3), math.log(0.1), generator=generator
        )
        dt = dt.exp().clamp(min=1e-4)
        assert self.dt.bias is not None
        self.dt.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        if self.dt.weight is not None:
            self.dt.weight.uniform_(
                -(self.spec.rank**-0.5), self.spec.rank**-0.5, generator=generator
            )


def _recurrence(
    x: Tensor,
    dt: Tensor,
    b: Tensor,
    c: Tensor,
    poles: Tensor,
    start: Tensor,
    lengths: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """One token of every row after another."""
    widths = [x.shape[1], dt.shape[1], b.shape[1], c.shape[1]]

    def cell(at: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        x, dt, b, c = at.split(widths, dim=1)
        h = torch.exp(dt[..., None] * poles) * carry[0] + (dt * x)[..., None] * b[:, None]
        return (h @ c[..., None]).squeeze(-1), (h,)

    y, (last,) = walk(cell, torch.cat([x, dt, b, c], 1), lengths, (start,))
    return y, last


def _scanned(
    x: Tensor,
    dt: Tensor,
    b: Tensor,
    c: Tensor,
    poles: Tensor,
    start: Tensor,
    lengths: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Row by row, the tokens of a chunk at once."""
    outs, last = [], []
    for h, *row in zip(start, *(t.split(lengths) for t in (x, dt, b, c)), strict=True):
        for x, dt, b, c in zip(*(t.split(CHUNK) for t in row), strict=True):
            decay = torch.exp(dt[..., None] * poles)
            new = (dt * x)[..., None] * b[:, None]
            new = torch.cat([new[:1] + decay[:1] * h, new[1:]])
            every = scan(decay, new)
            outs.append((every @ c[..., None]).squeeze(-1))
            h = every[-1]
        last.append(h)
    return torch.cat(outs), torch.stack(last)
