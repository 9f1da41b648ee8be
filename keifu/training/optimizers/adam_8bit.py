"""Adam with moments of 8 bits: a quarter of its memory (Dettmers et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from keifu.training.optimizers._eight_bit import EightBit
from keifu.training.optimizers.adam import Adam


@dataclass(frozen=True, kw_only=True)
class Adam8bit(Adam):
    """The settings of Adam; parameters of fewer than 4,096 values keep moments of 32 bits."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Over groups in torch's form."""
        settings = {
            "lr": self.lr, "betas": self.betas, "eps": self.eps, "weight_decay": self.decay,
            "coupled": True,
        }  # fmt: skip
        return EightBit(groups, settings)


optimizer = Adam8bit
