"""The optimization: a frozen value that names an optimizer and its settings, and builds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch.optim import Optimizer

from keifu.core.errors import KeifuError


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """Base of the optimizers' settings."""

    elementwise: ClassVar[bool] = False
    """Whether each number's update looks at its own gradient alone, so that shards can learn
    apart."""
    lr: float = 1e-3
    """Learning rate, before the schedule's factor and the group's"""
    decay: float = 0.0
    """Weight decay, where a group does not say otherwise"""

    def __post_init__(self) -> None:
        if not (self.lr >= 0 and self.decay >= 0):
            raise KeifuError(f"lr {self.lr} and decay {self.decay} must be 0 or more")

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over groups in torch's form: "params", "lr", "weight_decay"."""
        raise NotImplementedError
