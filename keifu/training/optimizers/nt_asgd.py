"""SGD that averages its weights once validation stops improving: NT-ASGD.

Source: Merity et al. 2018 (AWD-LSTM), section 4, algorithm 1; averaging: Polyak & Juditsky 1992.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from keifu.training.optimizer import Optimization


@dataclass(frozen=True, kw_only=True)
class NTASGD(Optimization):
    """Plain SGD until the trigger, then its running mean beside it."""

    elementwise: ClassVar[bool] = True

    patience: int = 5
    """Validations without a new best before averaging begins (n in the paper)"""

    def build(self, groups: list[dict[str, Any]]) -> Averaged:
        """Over groups in torch's form."""
        return Averaged(groups, lr=self.lr, patience=self.patience)


class Averaged(torch.optim.SGD):
    """SGD with the mean of the weights since the trigger, in each parameter's state."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, patience: int) -> None:
        super().__init__(groups, lr=lr)
        self.patience = patience
        self.losses: list[float] = []
        self.triggered = False

    def validated(self, loss: float) -> bool:
        """Take a validation loss; averaging begins when it is worse than an old best.

        The old best is the least of all but the last `patience` losses, so a bad moment alone does
        not trigger. Returns whether averaging is on.
        """
        old = self.losses[: max(0, len(self.losses) - self.patience)]
        if not self.triggered and old and loss > min(old):
            self.triggered = True
        self.losses.append(loss)
        return self.triggered

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One SGD step, then the running mean."""
        out = super().step(closure)
        if self.triggered:
            for parameter in self._parameters():
                state = self.state[parameter]
                if "mean" not in state:
                    state["mean"], state["count"] = torch.zeros_like(parameter), 0
                state["count"] += 1
                state["mean"] += (parameter - state["mean"]) / state["count"]
        return out

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this, the parameters are their means (for validation, for saving)."""
        held = {p: p.detach().clone() for p in self._parameters() if "mean" in self.state[p]}
        with torch.no_grad():
            for parameter in held:
                parameter.copy_(self.state[parameter]["mean"])
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in held.items():
                    parameter.copy_(value)

    @torch.no_grad()
    def finish(self) -> None:
        """Make the means the parameters: what the paper returns."""
        for parameter in self._parameters():
            if "mean" in self.state[parameter]:
                parameter.copy_(self.state[parameter]["mean"])

    def state_dict(self) -> dict[str, Any]:
        """With the validation losses and whether it was triggered."""
        return {**super().state_dict(), "losses": list(self.losses), "triggered": self.triggered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `state_dict` gave it."""
        rest = dict(state_dict)
        self.losses, self.triggered = list(rest.pop("losses")), bool(rest.pop("triggered"))
        super().load_state_dict(rest)

    def _parameters(self) -> Iterator[torch.nn.Parameter]:
        for group in self.param_groups:
            yield from group["params"]


optimizer = NTASGD
