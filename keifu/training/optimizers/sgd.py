"""Stochastic gradient descent, with momentum where asked (Polyak 1964; Nesterov 1983)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from keifu.training.optimizer import Optimization


@dataclass(frozen=True, kw_only=True)
class SGD(Optimization):
    """torch.optim.SGD."""

    elementwise: ClassVar[bool] = True

    momentum: float = 0.0
    """Share of the last update that is kept"""
    nesterov: bool = False
    """Look ahead along the momentum"""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Over groups in torch's form."""
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


optimizer = SGD
