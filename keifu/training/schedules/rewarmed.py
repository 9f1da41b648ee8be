"""Continued pre-training: from where an earlier run's rate ended up again, then half a cosine down.

Source: Gupta et al. 2023 (How to re-warm your model), section 3; Ibrahim et al. 2024 (Simple and
scalable strategies to continually pre-train), section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from keifu.core.errors import KeifuError
from keifu.training.schedule import Schedule, check_steps
from keifu.training.schedules.cosine import Cosine


@dataclass(frozen=True, kw_only=True)
class Rewarmed(Schedule):
    """start + (1 - start) * step / warmup up to `warmup`, then the cosine to the floor."""

    total: int
    """Steps until the rate is at its floor"""
    warmup: int
    """Steps from the earlier rate back to the whole one (the papers: 0 to 2 % of all)"""
    start: float = 0.1
    """Factor at which the earlier run ended"""
    floor: float = 0.1
    """Lowest factor at the end of this run"""

    def __post_init__(self) -> None:
        check_steps(self.warmup, self.total)
        if not 0 <= self.start <= 1:
            raise KeifuError(f"start {self.start} must be a share of the rate, 0 to 1")

    def factor(self, step: int) -> float:
        """At a step."""
        if step < self.warmup:
            return self.start + (1 - self.start) * step / self.warmup
        return Cosine(total=self.total, warmup=self.warmup, floor=self.floor).factor(step)


schedule = Rewarmed
