"""Guards: which steps are left out, and when a run goes back to where it was well.

A spike is answered as in PaLM (Chowdhery et al. 2022, section 5.1): go on from a state before it,
without the batches that were seen up to and in it.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from keifu.core.errors import KeifuError

LEAST = 0.05
"""A loss less than this share above the mean is no spike, however even the losses before it."""


class Diverged(KeifuError):
    """A run that cannot go on; `batches` are the numbers of those that it could not learn from."""

    def __init__(self, message: str, batches: list[tuple[int, int]]) -> None:
        super().__init__(message)
        self.batches = batches
        """Of each such step the first, and the first after it."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What makes a step bad besides numbers that are not finite, and how far to go back."""

    deviations: float | None = None
    """A loss of so many standard deviations above the mean of the window is a spike (such as 6)"""
    norm: float | None = None
    """A gradient of so many times the window's mean length is one, too (such as 10)"""
    window: int = 100
    """Good steps that the mean is of; nothing is judged before they are there"""
    back: int = 0
    """Go back so many steps to twice as many once `bad_steps` in a row were bad; 0: stop at once.
    Two states of the run are then held in memory"""
    rewinds: int = 3
    """So many times in a run, then it stops"""

    def __post_init__(self) -> None:
        if self.window < 2 or self.back < 0 or self.rewinds < 0:
            raise KeifuError("guard: window must be 2 or more, back and rewinds 0 or more")
        for name in ("deviations", "norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise KeifuError(f"guard: {name} {value} must be above 0, or none")


class Sentry:
    """Judges the steps of one run, and holds the states to go back to."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.losses: deque[float] = deque(maxlen=guard.window)
        self.norms: deque[float] = deque(maxlen=guard.window)
        self.bad: list[tuple[int, int]] = []
        """Batches of the bad steps in a row, up to now."""
        self.rewinds = 0
        self._held: deque[tuple[int, Any]] = deque(maxlen=2)

    def judge(self, loss: float, norm: float, batches: tuple[int, int]) -> bool:
        """Whether a step may change the weights."""
        good = math.isfinite(loss) and math.isfinite(norm) and not self._spike(loss, norm)
        if good:
            self.losses.append(loss)
            self.norms.append(norm)
            self.bad = []
        else:
            self.bad.append(batches)
        return good

    def _spike(self, loss: float, norm: float) -> bool:
        if len(self.losses) < self.guard.window:
            return False
        if self.guard.deviations is not None:
            mean = statistics.fmean(self.losses)
            spread = self.guard.deviations * statistics.pstdev(self.losses, mean)
            if loss > mean + max(spread, LEAST * abs(mean)):
                return True
        if self.guard.norm is None:
            return False
        return norm > self.guard.norm * statistics.fmean(self.norms)

    def due(self, step: int) -> bool:
        """Whether the state before a step should be held."""
        back = self.guard.back
        held = bool(self._held) and self._held[-1][0] == step
        return back > 0 and not self.bad and not held and (step % back == 0 or not self._held)

    def hold(self, step: int, state: Any) -> None:
        """Keep a copy of the state before a step."""
        self._held.append((step, copied((state, self._judged()))))

    def go_back(self) -> Any:
        """The older of the states that are held, or None where the run must stop."""
        if not self._held or self.rewinds >= self.guard.rewinds:
            return None
        self.rewinds += 1
        step, (state, judged) = self._held[0]
        self._held.clear()
        self._held.append((step, copied((state, judged))))
        self._take(judged)
        self.bad = []
        return state

    def _judged(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "norms": list(self.norms)}

    def _take(self, judged: Mapping[str, Any]) -> None:
        self.losses = deque(judged["losses"], maxlen=self.guard.window)
        self.norms = deque(judged["norms"], maxlen=self.guard.window)

    def state_dict(self) -> dict[str, Any]:
        """What judging goes on from. States to go back to are not part of it."""
        return {**self._judged(), "bad": [list(b) for b in self.bad], "rewinds": self.rewinds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `state_dict` gave it."""
        self._take(state)
        self.bad = [(int(first), int(end)) for first, end in state["bad"]]
        self.rewinds = int(state["rewinds"])
        self._held.clear()


def copied(value: Any) -> Any:
    """A copy of nested dictionaries and lists with tensors of their own."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: copied(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(one) for one in value)
    return value


def numbers(batches: list[tuple[int, int]]) -> str:
    """Batches as text: 3, 4, 8 to 11."""
    return ", ".join(str(a) if b - a == 1 else f"{a} to {b - 1}" for a, b in batches)


@torch.no_grad()
def put(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a model in place, so that an optimizer's parameters stay its own."""
    held = model.state_dict()
    for name, value in weights.items():
        held[name].copy_(value)
