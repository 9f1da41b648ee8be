"""The real-gated linear recurrent unit and the recurrent block of Hawk and Griffin.

De et al. 2024, arXiv 2402.19427, section 2.4 (equations 1 to 4):

    r_t = sigmoid(W_a x_t + b_a),  i_t = sigmoid(W_x x_t + b_x)
    a_t = a^(c r_t), c = 8,  h_t = a_t h_(t-1) + sqrt(1 - a_t^2) (i_t x_t)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keifu.nn.activations import ACTIVATIONS
from keifu.nn.block import scoped
from keifu.nn.conv import ShortConv
from keifu.nn.linear import Linear
from keifu.nn.part import Initialised, Part, parameter
from keifu.nn.scan import linear_scan
from keifu.nn.split import Cut, Rank, Split, Sum, beside, ins, outs
from keifu.nn.state import Entry, Fixed, Handle
from keifu.nn.step import Step

STEEPEST = 1000.0
"""The root's derivative is cut here, where a decay near one would make it infinite."""


class _BoundedRoot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sqrt()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        steep: Tensor = (4 * x).clamp(min=STEEPEST**-2).rsqrt()
        return grads[0] * steep


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True, kw_only=True)
class RGLRU(Part):
    """The unit: x (tokens, width) -> (tokens, width), its recurrence in at least float32.

    Gate matrices are block-diagonal, one block a head. The input at position 0 keeps its size:
    nothing has decayed there that the root would make up for.
    """

    width: int
    heads: int
    power: float = 8.0
    """The paper's c."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"{self}: the heads must divide the width")

    def build(self) -> nn.Module:
        """`decay`; `input_gate` and `decay_gate` with `weight` and `bias` of each head."""
        return _RGLRU(self)

    def state(self) -> Mapping[str, Entry]:
        """The last h."""
        return {"h": Fixed((self.width,))}


class _Gate(nn.Module):
    """sigmoid of a block-diagonal product: `weight` (heads, in, out), `bias` (heads, out)."""

    def __init__(self, heads: int, block: int) -> None:
        super().__init__()
        self.weight = parameter(heads, block, block)
        self.bias = parameter(heads, block)

    def forward(self, x: Tensor) -> Tensor:
        """x (tokens, width) -> (tokens, width) in at least float32."""
        heads = x.unflatten(-1, (self.weight.shape[0], -1)).transpose(0, 1)
        y = torch.baddbmm(self.bias.to(x.dtype)[:, None], heads, self.weight.to(x.dtype))
        return torch.sigmoid(_wide(y.transpose(0, 1).flatten(1)))


class _RGLRU(Initialised):
    def __init__(self, spec: RGLRU) -> None:
        super().__init__()
        self.spec = spec
        self.decay = parameter(spec.width)
        """a = sigmoid(-decay): the sign that RecurrentGemma stores, the paper's Lambda negated."""
        self.input_gate = _Gate(spec.heads, spec.width // spec.heads)
        self.decay_gate = _Gate(spec.heads, spec.width // spec.heads)

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        """x (tokens, width) -> (tokens, width)."""
        decay, new = self.gated(_wide(x), step.positions == 0)
        start = new.new_zeros(step.rows, self.spec.width)
        if state is not None:
            start = state.get("h").to(new.dtype)
        h, last = linear_scan(decay, new, start, step.lengths())
        if state is not None:
            state.set("h", last)
        return h.to(x.dtype)

    def gated(self, x: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and what joins h_t, both (tokens, width); `first` (tokens,) is where rows begin."""
        taken, gone = self.input_gate(x), self.decay_gate(x)
        log = -self.spec.power * gone * F.softplus(self.decay.to(gone.dtype))
        root: Tensor = _BoundedRoot.apply(-torch.expm1(2 * log))  # type: ignore[no-untyped-call]
        return log.exp(), torch.where(first[:, None], 1.0, root) * (taken * x)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """a from 0.9 to 0.999, uniform in a^2; gates N(0, 0.01 / block), their biases zero."""
        a2 = torch.empty(self.spec.width).uniform_(0.9**2, 0.999**2, generator=generator)
        self.decay.copy_((a2.rsqrt() - 1).log())
        std = (0.01 * self.spec.heads / self.spec.width) ** 0.5
        for gate in (self.input_gate, self.decay_gate):
            gate.weight.normal_(0.0, std, generator=generator)
            nn.init.zeros_(gate.bias)


@dataclass(frozen=True, kw_only=True)
class GatedRecurrence(Part):
    """The recurrent block: down(rglru(conv(into_x(x))) * act(into_gate(x))) (figure 2c)."""

    width: int
    inner: int
    heads: int
    kernel: int = 4
    act: str = "gelu_tanh"

    def build(self) -> nn.Module:
        """`into` with rows "gate", "x"; `conv`; `lru`; `down`; all with biases."""
        return _GatedRecurrence(self)

    @property
    def conv(self) -> ShortConv:
        """The short convolution before the recurrence."""
        return ShortConv(width=self.inner, kernel=self.kernel)

    @property
    def lru(self) -> RGLRU:
        """The recurrence."""
        return RGLRU(width=self.inner, heads=self.heads)

    def state(self) -> Mapping[str, Entry]:
        """The convolution's tail and the recurrence's state: fixed, however long the text."""
        inside: dict[str, Part] = {"conv": self.conv, "lru": self.lru}
        return {
            f"{a}.{b}": entry for a, part in inside.items() for b, entry in part.state().items()
        }

    def split(self, rank: Rank) -> Split:
        """By the heads of the recurrence's gates."""
        start, stop = heads = rank.even(self.heads, "heads")
        each = self.inner // self.heads
        run = (start * each, stop * each)
        cut, gates = Cut(0, self.inner, (run,)), Cut(0, self.heads, (heads,))
        cuts = outs("into", beside((self.inner, run), (self.inner, run))) | outs("conv", cut)
        cuts |= {"lru.decay": cut} | outs("lru.input_gate", gates) | outs("lru.decay_gate", gates)
        return Split(
            part=replace(self, inner=run[1] - run[0], heads=stop - start),
            cuts=cuts | ins("down", self.inner, run),
            joins={"": Sum()},
            once=frozenset({"down.bias"}),
        )


class _GatedRecurrence(nn.Module):
    def __init__(self, spec: GatedRecurrence) -> None:
        super().__init__()
        self.spec = spec
        rows = {"gate": spec.inner, "x": spec.inner}
        self.into = Linear(spec.width, 2 * spec.inner, bias=True, rows=rows)
        self.conv = spec.conv.build()
        self.lru = spec.lru.build()
        self.down = Linear(spec.inner, spec.width, bias=True)

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        """x (tokens, width) -> (tokens, width)."""
        gate, x = self.into(x).chunk(2, dim=-1)
        x = self.lru(self.conv(x, step, scoped(state, "conv")), step, scoped(state, "lru"))
        out: Tensor = self.down(x * ACTIVATIONS[self.spec.act](gate))
        return out
