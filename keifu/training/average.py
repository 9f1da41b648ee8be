"""A moving average of the weights, beside those that are trained (Polyak & Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from keifu.core.errors import KeifuError


@dataclass(frozen=True, kw_only=True)
class Average:
    """mean = decay * mean + (1 - decay) * weights, beginning with the weights of the first step."""

    decay: float = 0.999
    """Share of the mean that is kept"""
    every: int = 1
    """Steps from one to the next that counts"""
    after: int = 0
    """Steps before the first that counts"""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or self.every < 1 or self.after < 0:
            raise KeifuError("average: decay must be in [0, 1), every 1 or more, after 0 or more")


class Averaged:
    """The averages of the parameters that train."""

    def __init__(self, average: Average, weights: Mapping[str, Tensor]) -> None:
        self.average, self._weights = average, dict(weights)
        self.means: dict[str, Tensor] = {}
        """By name; empty before the first step that counts."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After a step, from 0."""
        past = step - self.average.after
        if past < 0 or past % self.average.every:
            return
        if not self.means:
            self.means = {n: p.detach().clone() for n, p in self._weights.items()}
            return
        means = [self.means[n] for n in self._weights]
        torch._foreach_lerp_(means, list(self._weights.values()), 1 - self.average.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this, the model's weights are the averages: to be evaluated, sampled, saved."""
        held = {n: self._weights[n].detach().clone() for n in self.means}
        self._put(self.means)
        try:
            yield
        finally:
            self._put(held)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._weights[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """The averages."""
        return dict(self.means)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `state_dict` gave it."""
        if state and state.keys() != self._weights.keys():
            raise KeifuError("the averages are of other parameters than those that train here")
        self.means = {n: v.to(self._weights[n].device, copy=True) for n, v in state.items()}
