"""The crew: the processes that train one model together, as the loop sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from keifu.training.objective import Loss, Objective
from keifu.training.optimizer import Optimization

B = TypeVar("B")
T = TypeVar("T")


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

    @property
    def first(self) -> bool:
        """Whether this process prints, logs and writes what is written once."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model that runs, before its optimizer is built; parameters keep their names."""

    def optimizer(self, optimization: Optimization, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer of a prepared model's parameters, or of what is here of them."""

    def loss(self, objective: Objective[B], model: nn.Module, batch: B) -> Loss:
        """The objective on the prepared model, all of which is there while it runs."""

    def gather(self, value: T) -> list[T]:
        """A plain value of each of those that take different batches, in their order."""

    def gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Once a step, after the last batch: every gradient becomes the sum over processes.

        The loop then divides by the count of the whole step.
        """

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Length of the whole gradient, whatever share of it this process holds."""

    def whole(self, model: nn.Module) -> nn.Module | None:
        """In the first process a prepared model put together, to be saved; in others None."""

    def together(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """In the first process whole tensors of parts by parameter name (averages); else none."""

    def apart(self, wholes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is here of whole tensors by parameter name."""

    def state(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state, put together in the first process, to be saved."""

    def load_state(self, model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Take what `state` gave, in whatever crew."""


class Alone:
    """One process: nothing to do and nothing to pay."""

    rank = 0
    world = 1
    first = True

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model

    def optimizer(self, optimization: Optimization, groups: list[dict[str, Any]]) -> Optimizer:
        """Of the parameters."""
        return optimization.build(groups)

    def loss(self, objective: Objective[B], model: nn.Module, batch: B) -> Loss:
        """The objective on the model."""
        return objective(model, batch)

    def gather(self, value: T) -> list[T]:
        """The value."""
        return [value]

    def gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """They are the sum already."""

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Of all of them."""
        return get_total_norm(gradients)

    def whole(self, model: nn.Module) -> nn.Module | None:
        """The model."""
        return model

    def together(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parts are the whole."""
        return dict(parts)

    def apart(self, wholes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All is here."""
        return dict(wholes)

    def state(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's own."""
        return optimizer.state_dict()

    def load_state(self, model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Into the optimizer."""
        optimizer.load_state_dict(state)


ALONE = Alone()
