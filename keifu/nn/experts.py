"""Sparse experts as a channel mixer: a router, stacked weights, work grouped by expert.

Emits "balance" and "router_z" (unweighted losses) and "dropped" (the share of choices that found
their expert full) where a step is listened to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keifu.core.errors import ConfigError, KeifuError
from keifu.nn.activations import ACTIVATIONS
from keifu.nn.kernels import products
from keifu.nn.kernels.formats import Packed
from keifu.nn.linear import Linear, Weight
from keifu.nn.mlp import MLP, GatedMLP
from keifu.nn.part import Part, parameter
from keifu.nn.state import Entry, Fixed, Handle
from keifu.nn.step import Step, ignore


@dataclass(frozen=True, kw_only=True)
class TopK:
    """The `top` likeliest experts under a softmax over all, weighted by their probabilities."""

    top: int = 1
    renormalise: bool = False
    """The weights of the chosen sum to one (Mixtral); Switch takes them as they are."""

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (tokens, experts) float32 -> weights and expert numbers, (tokens, top) each."""
        weights, chosen = logits.softmax(-1).topk(self.top, dim=-1)
        if self.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, chosen


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Most choices that an expert takes from one row, earlier tokens first.

    `tokens` is a number; it is counted across steps, so any split drops what the whole drops.
    `factor` is factor * tokens of the row / experts, rounded up (Fedus et al. 2021, eq. 3): it
    looks at the whole row, so it holds in training and scoring and not while generating.
    """

    tokens: int | None = None
    factor: float | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.factor is None):
            raise ConfigError("a capacity has tokens or a factor: give one of them")
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"expert capacity {self.tokens} is not allowed: at least 1 token")
        if self.factor is not None and not 0 < self.factor < math.inf:
            raise ConfigError(f"capacity factor {self.factor} is not allowed: a number above 0")

    def of(self, length: int, experts: int) -> int:
        """For a row of `length` tokens."""
        if self.tokens is not None:
            return self.tokens
        assert self.factor is not None
        return math.ceil(self.factor * length / experts)


@dataclass(frozen=True, kw_only=True)
class Experts(Part):
    """y = sum over the chosen experts of weight * expert(x) (Shazeer et al. 2017, eq. 1).

    A choice beyond an expert's capacity adds nothing: the token passes through the residual.
    """

    count: int
    expert: MLP | GatedMLP
    router: TopK = TopK()
    capacity: Capacity | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.router.top <= self.count:
            raise ConfigError(
                f"top={self.router.top} of {self.count} experts is not allowed: 1 to {self.count}"
            )

    def build(self) -> nn.Module:
        """`router`; `up`, `down` and, of a gated expert, `gate`: all experts' rows stacked."""
        return _Experts(self)

    def state(self) -> Mapping[str, Entry]:
        """How many choices each expert has taken, where that is limited."""
        counted = self.capacity is not None and self.capacity.tokens is not None
        return {"taken": Fixed((self.count,), torch.int64)} if counted else {}


class Stacked(Weight):
    """`count` matrices (outputs, inputs), one under the other: expert e is one run of rows."""

    def __init__(self, count: int, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__(count * outputs, inputs)
        self.each = outputs
        self.bias = parameter(count, outputs) if bias else None

    def forward(self, expert: int, x: Tensor) -> Tensor:
        """x (tokens, inputs) through one expert -> (tokens, outputs)."""
        start, stop = expert * self.each, (expert + 1) * self.each
        if self.weight is not None:
            y = products.dense(x, self.weight[start:stop])
        else:
            y = products.packed(x, _rows(self.pieces, start, stop), ())
        return y if self.bias is None else y + self.bias[expert].to(y.dtype)


def _rows(pieces: Sequence[Packed], start: int, stop: int) -> list[Packed]:
    """Rows start...stop of pieces that lie one under the other, still packed."""
    found, at = [], 0
    for piece in pieces:
        rows = piece.shape[0]
        a, b = max(start - at, 0), min(stop - at, rows)
        if a < b:
            found.append(Packed(piece.data[a:b], piece.format, piece.cols))
        at += rows
    return found


class _Experts(nn.Module):
    def __init__(self, spec: Experts) -> None:
        super().__init__()
        self.spec, inner = spec, spec.expert
        self.router = Linear(inner.width, spec.count)
        gated = isinstance(inner, GatedMLP)
        wide = (spec.count, inner.width, inner.hidden)
        self.gate = Stacked(*wide, bias=inner.bias) if gated else None
        self.up = Stacked(*wide, bias=inner.bias)
        self.down = Stacked(spec.count, inner.hidden, inner.width, bias=inner.bias)

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        """x (tokens, width) -> (tokens, width)."""
        logits = self.router(x.float())
        if not bool(torch.isfinite(logits).all()):
            raise KeifuError(
                "an expert router's scores are not finite: the weights are damaged or training "
                "has diverged (lower the learning rate, or resume from an earlier checkpoint)"
            )
        weights, chosen = self.spec.router.choose(logits)
        kept = self._kept(chosen, step, state)
        if step.emit is not ignore:
            self._report(logits, chosen, kept, step)
        y = torch.zeros_like(x)
        token, choice = kept.nonzero(as_tuple=True)
        if token.shape[0] == 0:  # every choice of this step finds its expert full
            return y
        expert = chosen[token, choice]
        order = expert.argsort(stable=True)
        token, weight = token[order], weights[token, choice][order]
        sizes = torch.bincount(expert, minlength=self.spec.count).tolist()
        parts = enumerate(x[token].split(sizes))
        outs = torch.cat([self._expert(e, part) for e, part in parts if part.shape[0]])
        return y.index_add(0, token, (outs * weight[:, None]).to(x.dtype))

    def _expert(self, expert: int, x: Tensor) -> Tensor:
        """One expert's layer over its tokens."""
        act = ACTIVATIONS[self.spec.expert.act]
        hidden = self.up(expert, x)
        hidden = act(hidden) if self.gate is None else act(self.gate(expert, x)) * hidden
        out: Tensor = self.down(expert, hidden)
        return out

    def _kept(self, chosen: Tensor, step: Step, state: Handle | None) -> Tensor:
        """Which choices (tokens, top) find room, in the order of tokens, then of choices."""
        capacity, count = self.spec.capacity, self.spec.count
        if capacity is None or (state is not None and capacity.tokens is None):
            return torch.ones_like(chosen, dtype=torch.bool)
        lengths = torch.tensor(step.lengths())
        row = torch.arange(step.rows).repeat_interleave(lengths).to(chosen.device)
        queue = (row[:, None] * count + chosen).flatten()
        order = queue.argsort(stable=True)
        sizes = torch.bincount(queue, minlength=step.rows * count)
        first = (sizes.cumsum(0) - sizes)[queue[order]]
        rank = torch.empty_like(queue)
        rank[order] = torch.arange(queue.shape[0], device=queue.device) - first
        if state is not None:
            taken = state.get("taken")
            rank = rank + taken.flatten()[queue]
            state.set("taken", taken + sizes.view_as(taken))
        limits = torch.tensor([capacity.of(n, count) for n in step.lengths()])
        return rank.view_as(chosen) < limits.to(row.device)[row][:, None]

    def _report(self, logits: Tensor, chosen: Tensor, kept: Tensor, step: Step) -> None:
        """The losses of one layer.

        Balance: experts * sum of share of choices * mean probability (Fedus et al. 2021, eq. 4).
        z-loss: the mean square of the log of the softmax's sum (Zoph et al. 2022, eq. 5).
        """
        share = torch.bincount(chosen.flatten(), minlength=self.spec.count) / logits.shape[0]
        step.emit("balance", self.spec.count * (share * logits.softmax(-1).mean(0)).sum())
        step.emit("router_z", logits.logsumexp(-1).square().mean())
        step.emit("dropped", 1.0 - kept.float().mean())
