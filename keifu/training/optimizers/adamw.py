"""AdamW: Adam with weight decay apart from the gradient (Loshchilov & Hutter 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from keifu.training.optimizer import Optimization


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimization):
    """torch.optim.AdamW, fused."""

    elementwise: ClassVar[bool] = True

    decay: float = 0.01
    """Weight decay, where a group does not say otherwise"""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments"""
    eps: float = 1e-8
    """Added to the root of the second moment"""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Over groups in torch's form."""
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


optimizer = AdamW
