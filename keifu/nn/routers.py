"""Routers: which experts see which token, and how much each counts; values that a layer takes.

Token choice: every token takes its likeliest experts (Shazeer et al. 2017; Fedus et al. 2021).
Expert choice: every expert takes its likeliest tokens (Zhou et al. 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from keifu.core.errors import ConfigError, KeifuError, unknown
from keifu.nn.linear import Linear
from keifu.nn.step import Step, readable

GATES = ("softmax", "sigmoid")


@dataclass(frozen=True, kw_only=True, eq=False)
class Routed:
    """The choices of a step, one entry each, all (choices,)."""

    token: Tensor
    expert: Tensor
    weight: Tensor
    """What the expert's output is multiplied by."""


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """While training, what the router sees is multiplied by U(1 - share, 1 + share).

    Fedus et al. 2021, section 2.2 and appendix D.
    """

    share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"router jitter {self.share} is not allowed: above 0, below 1")

    def scorer(self, width: int, count: int, bias: bool) -> Scorer:
        """No parameters more."""
        return _Jittered(width, count, bias, self.share)


@dataclass(frozen=True, kw_only=True)
class LearnedNoise:
    """While training, each score gets N(0, 1) * softplus(x W_noise) (Shazeer et al. 2017, 4)."""

    def scorer(self, width: int, count: int, bias: bool) -> Scorer:
        """With `noise`, the matrix W_noise."""
        return _Noisy(width, count, bias)


Noise = Jitter | LearnedNoise


@dataclass(frozen=True, kw_only=True)
class Router:
    """Base of the routers."""

    noise: Noise | None = None
    bias: bool = False

    whole: ClassVar[bool] = False
    """It looks at whole rows, so a model that generates token by token cannot have it."""

    def check(self, count: int) -> None:
        """Refuse what does not go with so many experts."""

    def scorer(self, width: int, count: int) -> Scorer:
        """The module that gives the scores, (tokens, width) -> (tokens, count)."""
        if self.noise is not None:
            return self.noise.scorer(width, count, self.bias)
        return Scorer(width, count, bias=self.bias)

    def route(self, scores: Tensor, step: Step) -> Routed:
        """Scores (tokens, experts), float32 or wider -> the choices."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TopK(Router):
    """Each token's `top` likeliest experts, weighted by their probabilities.

    A softmax over the chosen scores alone (Shazeer et al. 2017, eq. 3; Mixtral's paper) is the
    softmax over all with the chosen made to sum to one: `renormalise`.
    """

    top: int = 1
    renormalise: bool = False
    """The weights of the chosen sum to one (Mixtral); Switch takes them as they are."""
    gate: Literal["softmax", "sigmoid"] = "softmax"
    """Sigmoid: every expert is judged for itself (DeepSeek-V3, arXiv 2412.19437, eq. 15)."""

    def check(self, count: int) -> None:
        """At least one expert, at most all."""
        if self.gate not in GATES:
            raise unknown("router gate", self.gate, GATES)
        if not 1 <= self.top <= count:
            raise ConfigError(f"top={self.top} of {count} experts is not allowed: 1 to {count}")

    def route(self, scores: Tensor, step: Step) -> Routed:
        """`top` choices a token, one token after another."""
        chances = scores.softmax(-1) if self.gate == "softmax" else scores.sigmoid()
        weight, expert = chances.topk(self.top, dim=-1)
        if self.renormalise:
            weight = weight / weight.sum(-1, keepdim=True)
        token = torch.arange(scores.shape[0], device=scores.device).repeat_interleave(self.top)
        return Routed(token=token, expert=expert.flatten(), weight=weight.flatten())


@dataclass(frozen=True, kw_only=True)
class ExpertChoice(Router):
    """Each expert takes the same number k of each row's tokens, its likeliest.

    k = factor * tokens of the row / experts, rounded down, at least 1 (Zhou et al. 2022,
    arXiv 2202.09368, section 3.2, equations 1 and 2): `factor` experts a token on average. The
    paper's group is the batch; here it is a row, so that a row does not depend on its neighbours.
    """

    factor: float = 2.0
    whole: ClassVar[bool] = True

    def check(self, count: int) -> None:
        """No expert can take more tokens than there are."""
        if not 0 < self.factor <= count or not math.isfinite(self.factor):
            raise ConfigError(
                f"expert choice with factor {self.factor} of {count} experts is not allowed: "
                f"above 0, at most {count}"
            )

    def taken(self, length: int, count: int) -> int:
        """k, for a row of `length` tokens."""
        return min(length, max(1, int(self.factor * length / count)))

    def route(self, scores: Tensor, step: Step) -> Routed:
        """k choices an expert and row."""
        chances, count = scores.softmax(-1), scores.shape[-1]
        tokens, experts, weights = [], [], []
        for row, length in enumerate(step.lengths()):
            if not length:
                continue
            k = self.taken(length, count)
            weight, token = chances[step.span(row)].t().topk(k, dim=-1)
            tokens.append(token.flatten() + step.offsets[row])
            weights.append(weight.flatten())
            experts.append(torch.arange(count, device=scores.device).repeat_interleave(k))
        if not tokens:
            none = torch.zeros(0, dtype=torch.long, device=scores.device)
            return Routed(token=none, expert=none, weight=scores.new_zeros(0))
        return Routed(token=torch.cat(tokens), expert=torch.cat(experts), weight=torch.cat(weights))


class Scorer(Linear):
    """A linear layer in float32 whatever its weights are kept in.

    "Selective precision": the softmax is sensitive, the product small (Fedus et al. 2021, 2.4).
    """

    def __init__(self, width: int, count: int, *, bias: bool) -> None:
        super().__init__(width, count, bias=bias)

    def project(self, x: Tensor) -> Tensor:
        """x (tokens, width) -> (tokens, count), float32 or wider."""
        wide = x if x.element_size() > 4 else x.float()
        return F.linear(wide, self.dense(wide.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The same with bias and noise, checked.

        Raises:
            KeifuError: a score is NaN or infinite.
        """
        scores = super().forward(x)
        if readable(scores) and not bool(torch.isfinite(scores).all()):
            raise KeifuError(
                "an expert router's scores are not finite: the weights are damaged or training "
                "has diverged (lower the learning rate, or resume from an earlier checkpoint)"
            )
        return scores


class _Jittered(Scorer):
    def __init__(self, width: int, count: int, bias: bool, share: float) -> None:
        super().__init__(width, count, bias=bias)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            wide = x if x.element_size() > 4 else x.float()
            x = wide * torch.empty_like(wide).uniform_(1 - self.share, 1 + self.share)
        return super().forward(x)


class _Noisy(Scorer):
    def __init__(self, width: int, count: int, bias: bool) -> None:
        super().__init__(width, count, bias=bias)
        self.noise = Scorer(width, count, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        if not self.training:
            return scores
        return scores + torch.randn_like(scores) * F.softplus(self.noise(x))
