"""Linear warm-up, then 1 / sqrt(step) without an end (Raffel et al. 2020, T5, section 3.1.2)."""

from __future__ import annotations

from dataclasses import dataclass

from keifu.core.errors import KeifuError
from keifu.training.schedule import Schedule, check_steps


@dataclass(frozen=True, kw_only=True)
class InverseSquareRoot(Schedule):
    """step / warmup up to `warmup`, then sqrt(timescale / (step - warmup + timescale))."""

    warmup: int = 0
    """Steps of linear warm-up"""
    timescale: int | None = None
    """Steps after which the rate is down by the root of 2 (default: the warm-up, or 10,000)"""

    def __post_init__(self) -> None:
        check_steps(self.warmup)
        if self.timescale is not None and self.timescale < 1:
            raise KeifuError(f"timescale {self.timescale} must be 1 or more")

    def factor(self, step: int) -> float:
        """At a step."""
        if step < self.warmup:
            return step / self.warmup
        scale = self.timescale or self.warmup or 10_000
        return float((scale / (step - self.warmup + scale)) ** 0.5)


schedule = InverseSquareRoot
