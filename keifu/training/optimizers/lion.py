"""Lion: the sign of a momentum, one state a weight (Chen et al. 2023, algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from keifu.training.optimizer import Optimization
from keifu.training.optimizers._one_by_one import OneByOne


@dataclass(frozen=True, kw_only=True)
class Lion(Optimization):
    """w -= lr * (sign(b1 m + (1 - b1) g) + decay w), then m = b2 m + (1 - b2) g."""

    elementwise: ClassVar[bool] = True

    lr: float = 1e-4
    """Learning rate: 3 to 10 times less than AdamW's (section 5)"""
    betas: tuple[float, float] = (0.9, 0.99)
    """Share of the momentum in the sign, and of the momentum that is kept"""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Over groups in torch's form."""
        return Signs(groups, {"lr": self.lr, "betas": self.betas, "weight_decay": self.decay})


class Signs(OneByOne):
    """Lion's update."""

    def update(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """One weight."""
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        one, two = group["betas"]
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_(state["momentum"].lerp(gradient, 1 - one).sign_(), alpha=group["lr"])
        state["momentum"].lerp_(gradient, 1 - two)


optimizer = Lion
