"""What is looked at while a run goes on: held-out batches, samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from keifu.core.errors import KeifuError

if TYPE_CHECKING:
    from keifu.training.loop import Record, Trainer

B = TypeVar("B")


class Watch(Protocol):
    """Called after a step; what it returns joins the step's `Record.found`."""

    def __call__(self, trainer: Trainer[Any], record: Record) -> Mapping[str, Any]:
        """Found of the model as it is now, under names; empty where it is not its turn."""


class HeldOut(Generic[B]):
    """Mean loss and metrics on batches that are not learnt from.

    Args:
        batches: called each time, so that it may draw them anew; each process brings its own.
        every: steps from one evaluation to the next; the run's last step always has one.
        averaged: of the averaged weights, where the run has them.
    """

    def __init__(
        self, batches: Callable[[], Iterable[B]], *, every: int, averaged: bool = True
    ) -> None:
        self.batches, self.every, self.averaged = batches, _checked(every), averaged

    def __call__(self, trainer: Trainer[B], record: Record) -> Mapping[str, Any]:
        """{"held_out": {"loss": ..., the objective's metrics}}."""
        from keifu.training.loop import evaluate

        if not turn(trainer, record, self.every):
            return {}
        with trainer.averaged() if self.averaged else nullcontext():
            loss, metrics = evaluate(
                trainer.model, trainer.objective, self.batches(), trainer.crew,
                trainer.options.precision,
            )  # fmt: skip
        return {"held_out": {"loss": loss, **metrics}}


class Samples:
    """What the model says now.

    Args:
        say: given the model in evaluation mode, returns texts.
        every: steps from one to the next; the run's last step always has one.
    """

    def __init__(
        self, say: Callable[[nn.Module], list[str]], *, every: int, averaged: bool = True
    ) -> None:
        self.say, self.every, self.averaged = say, _checked(every), averaged

    def __call__(self, trainer: Trainer[Any], record: Record) -> Mapping[str, Any]:
        """{"samples": [text, ...]}."""
        if not turn(trainer, record, self.every):
            return {}
        around: AbstractContextManager[None] = (
            trainer.averaged() if self.averaged else nullcontext()
        )
        with around, evaluating(trainer.model), torch.no_grad():
            return {"samples": self.say(trainer.model)}


def turn(trainer: Trainer[Any], record: Record, every: int) -> bool:
    """Whether a step is one of every so many, or the last."""
    done = record.step + 1
    return record.back_to is None and (done % every == 0 or done == trainer.options.steps)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within this the model is in evaluation mode."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


def _checked(every: int) -> int:
    if every < 1:
        raise KeifuError(f"every {every} steps: 1 or more")
    return every
