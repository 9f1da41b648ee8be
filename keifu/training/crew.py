"""The crew: the processes that train one model together, as the loop sees them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer


class Crew(Protocol):
    """What the loop asks of the processes that train together; the loop knows no more of them.

    Step by step all of them call the same methods in the same order. A process differs from
    another in the batches that it takes, and these follow from `rank` and `world` alone.
    """

    @property
    def rank(self) -> int:
        """Number of this process among those that take different batches."""

    @property
    def world(self) -> int:
        """How many take different batches."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model that runs, before its optimizer is built; parameters keep their names."""

    def backward(self, last: bool) -> AbstractContextManager[None]:
        """Around the loss and gradient of one batch; `last` of this step's."""

    def sum(self, values: Tensor) -> Tensor:
        """(n,) float64: loss sums and counts, added up over processes."""

    def gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Once a step, after the last batch: every gradient becomes the sum over processes.

        The loop then divides by the count of the whole step.
        """

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Length of the whole gradient, whatever share of it this process holds."""

    def state(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state, to be saved."""

    def load_state(self, model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Take what `state` gave."""


class Alone:
    """One process: nothing to do and nothing to pay."""

    rank = 0
    world = 1

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model

    def backward(self, last: bool) -> AbstractContextManager[None]:
        """Nothing around it."""
        return nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """The values."""
        return values

    def gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """They are the sum already."""

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Of all of them."""
        return get_total_norm(gradients)

    def state(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's own."""
        return optimizer.state_dict()

    def load_state(self, model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Into the optimizer."""
        optimizer.load_state_dict(state)


ALONE = Alone()
