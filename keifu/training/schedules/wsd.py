"""Warm-up, a long stable stretch, a short decay at the end (Hu et al. 2024, MiniCPM, section 4).

The stretch can go on from any of its checkpoints; only the decay has to know the end. Its forms
are compared by Hägele et al. 2024 (Scaling Laws Beyond Fixed Training Durations), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from keifu.core.errors import KeifuError, unknown
from keifu.training.schedule import Schedule, check_steps

FORMS: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "sqrt": lambda done: 1 - math.sqrt(done),
}
"""Share of the decay that is done -> what is left of the rate."""


@dataclass(frozen=True, kw_only=True)
class WSD(Schedule):
    """step / warmup, then 1, then in the last `decay` steps down to the floor."""

    total: int
    """Steps until the rate is at its floor"""
    decay: int
    """Steps of the decay (MiniCPM: a tenth of all)"""
    warmup: int = 0
    """Steps of linear warm-up"""
    form: str = "linear"
    """linear, cosine, or sqrt (1 - sqrt of the share that is done)"""
    floor: float = 0.0
    """Lowest factor"""

    def __post_init__(self) -> None:
        check_steps(self.warmup, self.total)
        if self.form not in FORMS:
            raise unknown("form of decay", self.form, FORMS)
        if not 1 <= self.decay <= self.total - self.warmup:
            raise KeifuError(
                f"a decay of {self.decay} steps does not fit into {self.total} of which "
                f"{self.warmup} warm up"
            )

    def factor(self, step: int) -> float:
        """At a step."""
        if step < self.warmup:
            return step / self.warmup
        done = min(1.0, max(0.0, (step - self.total + self.decay) / self.decay))
        return self.floor + (1 - self.floor) * FORMS[self.form](done)


schedule = WSD
