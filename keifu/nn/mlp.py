"""Channel mixers: the plain and the gated multi-layer perceptron."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from keifu.nn.activations import ACTIVATIONS
from keifu.nn.kernels import trained
from keifu.nn.linear import Linear
from keifu.nn.part import Part, parameter
from keifu.nn.split import Cut, Rank, Split, Sum, beside, combined, ins, outs
from keifu.nn.state import Handle
from keifu.nn.step import Step


@dataclass(frozen=True, kw_only=True)
class MLP(Part):
    """down(act(up(x))): the Transformer's feed-forward layer."""

    width: int
    hidden: int
    act: str = "gelu"
    bias: bool = True

    def build(self) -> nn.Module:
        """`up` and `down`."""
        return _MLP(self)

    def split(self, rank: Rank) -> Split:
        """By hidden units."""
        run = rank.near(self.hidden, "hidden units")
        return Split(
            part=replace(self, hidden=run[1] - run[0]),
            cuts=outs("up", Cut(0, self.hidden, (run,))) | ins("down", self.hidden, run),
            joins={"": Sum()},
            once=frozenset({"down.bias"}),
        )


class _MLP(nn.Module):
    def __init__(self, spec: MLP) -> None:
        super().__init__()
        self.spec = spec
        self.up = Linear(spec.width, spec.hidden, bias=spec.bias)
        self.down = Linear(spec.hidden, spec.width, bias=spec.bias)

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        out: Tensor = self.down(ACTIVATIONS[self.spec.act](self.up(x)))
        return out


@dataclass(frozen=True, kw_only=True)
class GatedMLP(Part):
    """down(act(gate(x)) * up(x)): SwiGLU, GeGLU and relatives (Shazeer 2020)."""

    width: int
    hidden: int
    act: str = "silu"
    bias: bool = False

    def build(self) -> nn.Module:
        """`gate_up`, one projection with rows "gate" and "up", and `down`."""
        return _GatedMLP(self)

    def split(self, rank: Rank) -> Split:
        """By hidden units."""
        run = rank.near(self.hidden, "hidden units")
        both = beside((self.hidden, run), (self.hidden, run))
        return Split(
            part=replace(self, hidden=run[1] - run[0]),
            cuts=outs("gate_up", both) | ins("down", self.hidden, run),
            joins={"": Sum()},
            once=frozenset({"down.bias"}),
        )


class _GatedMLP(nn.Module):
    def __init__(self, spec: GatedMLP) -> None:
        super().__init__()
        self.spec = spec
        rows = {"gate": spec.hidden, "up": spec.hidden}
        self.gate_up = Linear(spec.width, 2 * spec.hidden, bias=spec.bias, rows=rows)
        self.down = Linear(spec.hidden, spec.width, bias=spec.bias)

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        both = self.gate_up(x)
        if self.spec.act == "silu" and both.dtype == torch.bfloat16 and trained.fuses(both):
            inner = trained.silu_gate(both)
        else:
            gate, up = both.chunk(2, dim=-1)
            inner = ACTIVATIONS[self.spec.act](gate) * up
        out: Tensor = self.down(inner)
        return out


@dataclass(frozen=True, kw_only=True)
class Maxout(Part):
    """The larger of each pair of linear units, x (tokens, width) -> (tokens, hidden).

    Goodfellow et al. 2013; the deep output of Bahdanau et al. 2014, section A.2.2.
    """

    width: int
    hidden: int
    pieces: int = 2
    """Units that compete for each output."""

    def build(self) -> nn.Module:
        """`up`."""
        return _Maxout(self)


class _Maxout(nn.Module):
    def __init__(self, spec: Maxout) -> None:
        super().__init__()
        self.spec = spec
        self.up = Linear(spec.width, spec.hidden * spec.pieces, bias=True)

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        out: Tensor = self.up(x).unflatten(-1, (self.spec.hidden, self.spec.pieces)).amax(-1)
        return out


@dataclass(frozen=True, kw_only=True)
class Rescaled(Part):
    """A learned factor a channel on what a part returns, small at first (Touvron et al. 2021)."""

    inner: Part
    width: int
    start: float

    def build(self) -> nn.Module:
        """`inner` and `scale` (width,)."""
        return _Rescaled(self)

    def split(self, rank: Rank) -> Split:
        """The inner part's share."""
        share = self.inner.split(rank)
        return combined(replace(self, inner=share.part), {"inner": share})


class _Rescaled(nn.Module):
    def __init__(self, spec: Rescaled) -> None:
        super().__init__()
        self.inner = spec.inner.build()
        self.scale = parameter(spec.width, fill=spec.start)

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        out: Tensor = self.inner(x, step, state)
        return out * self.scale.to(out.dtype)
