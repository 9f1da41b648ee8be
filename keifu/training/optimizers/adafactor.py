"""Adafactor: a row and a column stand for the second moment of a matrix (Shazeer & Stern 2018).

R = b R + (1 - b) mean of g^2 over columns, C likewise over rows; V = R C / mean(R)  (algorithm 4)
b = 1 - t^-0.8 (section 7.2); update g / sqrt(V), shortened to a root mean square of `clip`
(section 6); steps relative to the weight's own root mean square (section 8).

The paper's own rate, min(0.01, 1 / sqrt(t)), is the schedule `inverse-square-root` with a
timescale of 10,000 steps and no warm-up, at a learning rate of 0.01.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from keifu.training.optimizer import Optimization
from keifu.training.optimizers._one_by_one import OneByOne


@dataclass(frozen=True, kw_only=True)
class Adafactor(Optimization):
    """Memory of rows + columns a matrix, not of rows * columns; T5's optimizer."""

    lr: float = 1e-2
    """Learning rate, times the weight's root mean square where `relative`"""
    relative: bool = True
    """Steps in proportion to the weight"""
    momentum: float = 0.0
    """Share of the last update that is kept; above 0 it costs one more state a weight"""
    clip: float = 1.0
    """Greatest root mean square of an update before the learning rate"""
    power: float = -0.8
    """How fast the second moment slows down"""
    eps: tuple[float, float] = (1e-30, 1e-3)
    """Added to squared gradients; least root mean square of a weight"""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Over groups in torch's form."""
        settings = {
            "lr": self.lr, "relative": self.relative, "momentum": self.momentum,
            "clip": self.clip, "power": self.power, "eps": self.eps, "weight_decay": self.decay,
        }  # fmt: skip
        return Factored(groups, settings)


class Factored(OneByOne):
    """Adafactor's update; moments are float32 whatever the weights are."""

    def update(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """One weight."""
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        state["step"] = state.get("step", 0) + 1
        kept = 1 - state["step"] ** group["power"]
        change = gradient * _inverse_root(gradient.square() + group["eps"][0], state, kept)
        change.div_((_rms(change) / group["clip"]).clamp_(min=1.0))
        rate = group["lr"]
        if group["relative"]:
            rate = rate * max(group["eps"][1], float(_rms(weight.to(change.dtype))))
        change.mul_(rate)
        if group["momentum"]:
            held = state.setdefault("momentum", torch.zeros_like(change))
            change = held.lerp_(change, 1 - group["momentum"])
        weight.mul_(1 - group["weight_decay"] * rate).sub_(change)


def _inverse_root(square: Tensor, state: dict[str, Any], kept: float) -> Tensor:
    """1 / sqrt of the second moment after one more squared gradient."""
    if square.dim() < 2:
        moment: Tensor = state.setdefault("second", torch.zeros_like(square))
        return moment.lerp_(square, 1 - kept).rsqrt()
    rows: Tensor = state.setdefault("rows", torch.zeros_like(square[..., 0]))
    columns: Tensor = state.setdefault("columns", torch.zeros_like(square[..., 0, :]))
    rows.lerp_(square.mean(-1), 1 - kept)
    columns.lerp_(square.mean(-2), 1 - kept)
    over_mean = (rows / rows.mean(-1, keepdim=True)).rsqrt_()
    return over_mean[..., None] * columns.rsqrt()[..., None, :]


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


optimizer = Adafactor
