"""Adam (Kingma & Ba 2015), weight decay inside the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from keifu.training.optimizer import Optimization


@dataclass(frozen=True, kw_only=True)
class Adam(Optimization):
    """torch.optim.Adam, fused."""

    elementwise: ClassVar[bool] = True

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments (Transformer of 2017: 0.9, 0.98)"""
    eps: float = 1e-8
    """Added to the root of the second moment (Transformer of 2017: 1e-9)"""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Over groups in torch's form."""
        return torch.optim.Adam(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


optimizer = Adam
