"""State-space token mixers: Mamba's selective SSM as a scan over many tokens or a recurrence.

h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t,  y_t = C_t h_t + D x_t   (Gu & Dao 2023, eq. 2 and 4)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keifu.nn.activations import ACTIVATIONS
from keifu.nn.block import scoped
from keifu.nn.conv import ShortConv
from keifu.nn.linear import Linear
from keifu.nn.part import Initialised, Part, parameter
from keifu.nn.selective import Selection, selective, wide
from keifu.nn.split import Cut, Rank, Split, Sum, beside, ins, outs
from keifu.nn.state import Entry, Fixed, Handle
from keifu.nn.step import Step


@dataclass(frozen=True, kw_only=True)
class TimeStep:
    """How dt starts: log-uniform between two times (Gu & Dao 2023, section 3.6)."""

    least: float = 0.001
    most: float = 0.1
    floor: float = 1e-4
    scale: float = 1.0
    """Of the weights that project dt up, whose bound is scale / sqrt(rank)."""
    constant: bool = False
    """Those weights are all at the bound, not drawn within it."""

    def bias(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) values whose softplus are such times."""
        drawn = torch.rand(count, generator=generator)
        low, high = math.log(self.least), math.log(self.most)
        dt = (low + drawn * (high - low)).exp().clamp(min=self.floor)
        return dt + torch.log(-torch.expm1(-dt))

    def weights(self, weight: Tensor, generator: torch.Generator) -> None:
        """Fill (inner, rank)."""
        bound = self.scale * weight.shape[1] ** -0.5
        if self.constant:
            weight.fill_(bound)
        else:
            weight.uniform_(-bound, bound, generator=generator)


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
    act: str = "silu"
    """After the convolution; the gate is always silu."""
    steady: float | None = None
    """dt, B and C are divided by their rms with this eps (Falcon Mamba); None: they are not."""
    time: TimeStep = TimeStep()

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
        return tail | {"ssm": Fixed((self.states, self.inner))}

    def split(self, rank: Rank) -> Split:
        """By channels; what dt, B and C are made of is a sum over all of them."""
        start, stop = run = rank.even(self.inner, "channels")
        cut = Cut(0, self.inner, (run,))
        cuts = outs("into", beside((self.inner, run), (self.inner, run))) | outs("conv", cut)
        cuts |= ins("select", self.inner, run) | outs("dt", cut) | {"log_a": cut, "d": cut}
        return Split(
            part=replace(self, inner=stop - start),
            cuts=cuts | ins("out", self.inner, run),
            joins={"select": Sum(), "": Sum()},
            once=frozenset({"out.bias"}),
        )


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
        """x (tokens, width) -> (tokens, width); products in x's precision, the scan in float32."""
        dtype = x.dtype
        x, gate = wide(self.into(x)).chunk(2, dim=-1)
        x = ACTIVATIONS[self.spec.act](self.conv(x, step, scoped(state, "conv")))
        dt, b, c = self.select(x).split(list(self.select.rows.values()), dim=-1)
        if self.spec.steady is not None:
            dt, b, c = (F.rms_norm(t, t.shape[-1:], eps=self.spec.steady) for t in (dt, b, c))
        given = Selection(
            x=x,
            dt=F.softplus(self.dt(dt)),
            b=b,
            c=c,
            gate=gate,
            poles=-torch.exp(wide(self.log_a)).T,
            d=wide(self.d),
        )
        shape = (step.rows, self.spec.states, self.spec.inner)
        start = x.new_zeros(shape) if state is None else state.get("ssm")
        y, last = selective(given, start, step.lengths())
        if state is not None:
            state.set("ssm", last)
        out: Tensor = self.out(y.to(dtype))
        return out

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Poles 1...N (S4D-real), dt as `time` says, D one (section 3.6)."""
        self.log_a.copy_(torch.arange(1, self.spec.states + 1).log().expand_as(self.log_a))
        self.d.fill_(1.0)
        assert self.dt.bias is not None
        self.dt.bias.copy_(self.spec.time.bias(self.spec.inner, generator))
        if self.dt.weight is not None:
            self.spec.time.weights(self.dt.weight, generator)
