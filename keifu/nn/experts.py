"""Sparse experts as a channel mixer: a router, stacked weights, work grouped by expert.

Emits "balance" and "router_z" (unweighted losses) and "dropped" (the share of choices that found
their expert full) where a step is listened to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from keifu.core.errors import ConfigError, KeifuError
from keifu.nn.activations import ACTIVATIONS
from keifu.nn.linear import Linear
from keifu.nn.losses import balance, z_loss
from keifu.nn.mlp import MLP, GatedMLP
from keifu.nn.part import Part
from keifu.nn.routers import Routed, Router, TopK
from keifu.nn.split import Cut, Rank, Split, Sum, combined
from keifu.nn.stacked import Stacked
from keifu.nn.state import Entry, Fixed, Handle
from keifu.nn.step import Step, ignore, readable


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
class Always(Part):
    """An expert that every token sees beside the chosen ones (DeepSeekMoE, Dai et al. 2024).

    `gated`: its output is multiplied by sigmoid(w x) (Qwen1.5-MoE).
    """

    mlp: MLP | GatedMLP
    gated: bool = False

    def build(self) -> nn.Module:
        """`mlp` and, where it is gated, `gate`."""
        return _Always(self)


class _Always(nn.Module):
    def __init__(self, spec: Always) -> None:
        super().__init__()
        self.mlp = spec.mlp.build()
        self.gate = Linear(spec.mlp.width, 1) if spec.gated else None

    def forward(self, x: Tensor, step: Step) -> Tensor:
        y: Tensor = self.mlp(x, step, None)
        return y if self.gate is None else y * torch.sigmoid(self.gate(x))


@dataclass(frozen=True, kw_only=True)
class Experts(Part):
    """y = sum over the chosen experts of weight * expert(x) (Shazeer et al. 2017, eq. 1).

    A choice beyond an expert's capacity adds nothing: the token passes through the residual.
    """

    count: int
    expert: MLP | GatedMLP
    router: Router = TopK()
    capacity: Capacity | None = None
    always: Always | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"{self.count} experts are not allowed: at least 1")
        self.router.check(self.count)
        if self.router.whole and self.capacity is not None:
            raise ConfigError("expert choice fixes what an expert takes: leave out the capacity")

    def build(self) -> nn.Module:
        """`router`; `experts.up`, `.down` and, if gated, `.gate`: all experts' rows; `always`."""
        return _Experts(self)

    def state(self) -> Mapping[str, Entry]:
        """How many choices each expert has taken, where that is limited."""
        counted = self.capacity is not None and self.capacity.tokens is not None
        return {"taken": Fixed((self.count,), torch.int64)} if counted else {}

    def split(self, rank: Rank) -> Split:
        """Every expert by its hidden units: all processes route alike, and none has more to do."""
        hidden, narrow, always = self.expert.hidden, self.expert, self.always
        start, stop = run = rank.near(hidden, "hidden units of an expert")
        runs = tuple((e * hidden + start, e * hidden + stop) for e in range(self.count))
        cuts = {"experts.down.weight": Cut(1, hidden, (run,))}
        for name in ("up", "gate"):
            cuts[f"experts.{name}.weight"] = Cut(0, self.count * hidden, runs)
            cuts[f"experts.{name}.bias"] = Cut(1, hidden, (run,))
        once = frozenset({"experts.down.bias"})
        if always is not None:
            share = always.mlp.split(rank)
            assert isinstance(share.part, MLP | GatedMLP)
            inside = combined(always, {"always.mlp": share})  # their sum is part of this one's
            always, once = replace(always, mlp=share.part), once | inside.once
            cuts |= inside.cuts
        narrow = replace(narrow, hidden=stop - start)
        part = replace(self, expert=narrow, always=always)
        return Split(part=part, cuts=cuts, joins={"": Sum()}, once=once)


class Bank(nn.Module):
    """The layers of all experts."""

    def __init__(self, count: int, spec: MLP | GatedMLP) -> None:
        super().__init__()
        wide = (count, spec.width, spec.hidden)
        self.act = ACTIVATIONS[spec.act]
        self.gate = Stacked(*wide, bias=spec.bias) if isinstance(spec, GatedMLP) else None
        self.up = Stacked(*wide, bias=spec.bias)
        self.down = Stacked(count, spec.hidden, spec.width, bias=spec.bias)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """x (choices, width) sorted by expert, `sizes` of them each -> (choices, width)."""
        hidden = self.up.grouped(x, sizes)
        if self.gate is None:
            hidden = self.act(hidden)
        else:
            hidden = self.act(self.gate.grouped(x, sizes)) * hidden
        return self.down.grouped(hidden, sizes)

    def each_by(self, x: Tensor, expert: Tensor | None) -> Tensor:
        """The same in shapes that do not depend on who was chosen: see `Stacked.each_by`."""
        hidden = self.up.each_by(x, expert)
        if self.gate is None:
            hidden = self.act(hidden)
        else:
            hidden = self.act(self.gate.each_by(x, expert)) * hidden
        return self.down.each_by(hidden, expert)


class _Experts(nn.Module):
    def __init__(self, spec: Experts) -> None:
        super().__init__()
        self.spec = spec
        self.router = spec.router.scorer(spec.expert.width, spec.count)
        self.experts = Bank(spec.count, spec.expert)
        self.always = spec.always.build() if spec.always else None

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        """x (tokens, width) -> (tokens, width)."""
        if state is not None and self.spec.router.whole:
            raise KeifuError(
                "expert choice looks at whole rows, so it cannot generate token by token: score "
                "with it, or train with a TopK router"
            )
        scores = self.router(x)
        routed = self.spec.router.route(scores, step)
        kept = self._kept(routed, step, state)
        if step.emit is not ignore:
            self._report(scores, routed, kept, step)
        y = self._mixed(x, routed, kept)
        return y if self.always is None else y + self.always(x, step)

    def _mixed(self, x: Tensor, routed: Routed, kept: Tensor | None) -> Tensor:
        """Choices sorted by expert, one product a matrix of each used expert."""
        token, expert, weight = routed.token, routed.expert, routed.weight
        if kept is None and not readable(x):
            return self._any(x, routed)
        if kept is not None:
            token, expert, weight = token[kept], expert[kept], weight[kept]
        y = torch.zeros_like(x)
        order = expert.argsort(stable=True)
        token = token[order]
        sizes = torch.bincount(expert, minlength=self.spec.count).tolist()
        outs = self.experts(x[token], sizes)
        return y.index_add(0, token, outs * weight[order, None].to(outs.dtype))

    def _any(self, x: Tensor, routed: Routed) -> Tensor:
        """The same, whoever is chosen: the matrices of each choice while those are few, else every
        expert over every token. A token's choices lie one after another."""
        choices, shape = routed.token.shape[0], (x.shape[0], -1)
        weight, expert = routed.weight.to(x.dtype), routed.expert
        if choices < self.spec.count:
            outs = self.experts.each_by(x[routed.token], expert)
            summed: Tensor = (outs * weight[:, None]).unflatten(0, shape).sum(1)
            return summed
        gates = x.new_zeros(x.shape[0], self.spec.count)
        gates = gates.scatter(1, expert.view(shape), weight.view(shape))
        every = self.experts.each_by(x[None], None)
        mixed: Tensor = (every * gates.T[..., None]).sum(0)
        return mixed

    def _kept(self, routed: Routed, step: Step, state: Handle | None) -> Tensor | None:
        """Which choices find room, in their order; None: all do."""
        capacity, count = self.spec.capacity, self.spec.count
        if capacity is None or (state is not None and capacity.tokens is None):
            return None
        lengths = torch.tensor(step.lengths())
        rows = torch.arange(step.rows).repeat_interleave(lengths).to(routed.token.device)
        row = rows[routed.token]
        queue = row * count + routed.expert
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
        return rank < limits.to(row.device)[row]

    def _report(self, scores: Tensor, routed: Routed, kept: Tensor | None, step: Step) -> None:
        """The losses and the statistic of one layer."""
        step.emit("balance", balance(scores, routed.expert))
        step.emit("router_z", z_loss(scores, weight=1.0))
        full = 1.0 - kept.float().mean() if kept is not None else scores.new_zeros(())
        step.emit("dropped", full)
