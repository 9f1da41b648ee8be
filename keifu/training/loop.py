"""The loop: accumulate, clip, step, schedule, log. The one loop of every objective and model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.nn.utils import clip_grads_with_norm_

from keifu.core.errors import KeifuError
from keifu.training.crew import ALONE, Crew
from keifu.training.groups import EVERYTHING, Group, optimizer_groups
from keifu.training.objective import Loss, Objective
from keifu.training.optimizer import Optimization
from keifu.training.optimizers.adamw import AdamW
from keifu.training.schedule import Schedule
from keifu.training.schedules.constant import Constant

B = TypeVar("B")
Data = Callable[[int], B]
"""The number of a batch in the whole run, from 0 -> that batch, the same each time it is asked for.

Number k of size b holds examples k * b to k * b + b - 1 of one endless row. A step takes
accumulate * world batches from where the last one ended: process r takes every world-th, from the
r-th on. So one batch of eight, two of four and eight of one, in one process or in two, are the same
step, and to continue a run is to know the next number.
"""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How long and how the loop runs."""

    steps: int = 1000
    """Updates of the weights"""
    accumulate: int = 1
    """Batches of one update"""
    clip: float | None = 1.0
    """Longest gradient; a longer one is shortened to it"""
    seed: int = 0
    """Of dropout and whatever else is drawn while training"""
    bad_steps: int = 5
    """So many steps in a row without a finite loss and gradient end the run"""
    progress: bool = False
    """Show a bar on the terminal"""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulate < 1 or self.bad_steps < 1:
            raise KeifuError("steps, accumulate and bad_steps must be 1 or more")
        if self.clip is not None and not self.clip > 0:
            raise KeifuError(f"clip {self.clip} must be above 0, or none")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one step did."""

    step: int
    loss: float
    """Mean over the step's items."""
    count: int
    """Items."""
    norm: float
    """Length of the gradient before it was clipped."""
    lr: float
    """Of the last group."""
    skipped: bool
    """The loss or the gradient was not finite, so the weights were left alone."""
    batches: tuple[int, int]
    """Numbers of its batches in the whole run: the first, and the first of the next step."""
    metrics: Mapping[str, float]
    seconds: float


@dataclass
class Run:
    """All that a run is besides weights and optimizer: what continuing it exactly needs."""

    step: int = 0
    """Steps done."""
    batch: int = 0
    """Number of the next step's first batch."""
    skipped: int = 0
    bad: int = 0
    """Skipped steps in a row, up to now."""
    rng: dict[str, torch.Tensor] = field(default_factory=dict)
    """torch's generators after the last step, by device."""


class Trainer(Generic[B]):
    """Trains a model in place on an objective.

    ```
    trainer = Trainer(model, CausalLM(), options=TrainOptions(steps=300))
    history = trainer.fit(shuffled(rows, 8, Sequences.of))
    ```

    Args:
        optimization, schedule: the learning rate of a step is the optimizer's times the group's
            times the schedule's factor.
        groups: what learns, and how; sets `requires_grad` on every parameter.
        on_step: called after every step with what it did.
        crew: the processes that train together.

    Attributes:
        state: where the run stands.
        history: what each step did that this trainer made.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective[B],
        *,
        optimization: Optimization = AdamW(),
        schedule: Schedule = Constant(),
        groups: Sequence[Group] = EVERYTHING,
        options: TrainOptions = TrainOptions(),
        on_step: Sequence[Callable[[Record], None]] = (),
        crew: Crew = ALONE,
    ) -> None:
        self.model, self.objective, self.crew = crew.prepare(model), objective, crew
        self.schedule, self.options, self.on_step = schedule, options, tuple(on_step)
        found = optimizer_groups(self.model, groups, lr=optimization.lr, decay=optimization.decay)
        self.optimizer = optimization.build(found)
        self.parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.state = Run()
        self.history: list[Record] = []

    def fit(self, data: Data[B]) -> list[Record]:
        """Run the steps that are left; returns `history`.

        Leaves the model in evaluation mode, and torch's global generator as it was.

        Raises:
            KeifuError: a step has nothing to learn from, or too many steps in a row were not
                finite.
        """
        self.model.train()
        try:
            with self._seeded(), _bar(self.options) as show:
                while self.state.step < self.options.steps:
                    record = self._step(data)
                    self.state.rng = self._generators()
                    for call in (*self.on_step, show):
                        call(record)
        finally:
            self.model.eval()
        return self.history

    def _step(self, data: Data[B]) -> Record:
        """One update from the batches of all processes together."""
        start = time.perf_counter()
        first, each = self.state.batch, self.options.accumulate
        self.optimizer.zero_grad()
        losses = []
        for i in range(each):
            batch = data(first + i * self.crew.world + self.crew.rank)
            with self.crew.backward(last=i + 1 == each):
                loss = self.objective(self.model, batch)
                loss.total.backward()
            losses.append(_detached(loss))
        mean, count, metrics = summed(losses, self.crew)
        norm = self._gradient(count)
        skipped = not (math.isfinite(mean) and math.isfinite(norm))
        factor = self.schedule.factor(self.state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor
        if not skipped:
            self.optimizer.step()
        record = Record(
            step=self.state.step, loss=mean, count=count, norm=norm, skipped=skipped,
            lr=self.optimizer.param_groups[-1]["lr"],
            batches=(first, first + each * self.crew.world), metrics=metrics,
            seconds=time.perf_counter() - start,
        )  # fmt: skip
        self._count(record)
        return record

    def _gradient(self, count: int) -> float:
        """Divide the gradient by the items, clip it; returns its length before that."""
        if not count:
            raise KeifuError(f"step {self.state.step} has no item to learn from: all are ignored")
        self.crew.gradients(self.parameters)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            raise KeifuError("no parameter that trains has a part in the loss")
        torch._foreach_div_(gradients, float(count))
        norm = self.crew.norm(gradients)
        if self.options.clip is not None and math.isfinite(float(norm)):
            clip_grads_with_norm_(self.parameters, self.options.clip, norm)
        return float(norm)

    def _count(self, record: Record) -> None:
        """Keep what a step did; too many bad ones in a row end the run."""
        run = self.state
        run.step, run.batch = run.step + 1, record.batches[1]
        run.skipped += record.skipped
        run.bad = run.bad + 1 if record.skipped else 0
        self.history.append(record)
        if run.bad >= self.options.bad_steps:
            raise KeifuError(
                f"{run.bad} steps in a row to step {record.step} had no finite loss and gradient "
                f"(loss {record.loss:g}, gradient {record.norm:g}, lr {record.lr:g}): lower the "
                "learning rate, warm up longer, or look for bad values in the data"
            )

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Within this, torch draws from the run's own generator."""
        with torch.random.fork_rng():
            if self.state.rng:
                torch.set_rng_state(self.state.rng["cpu"])
                if "cuda" in self.state.rng:
                    torch.cuda.set_rng_state(self.state.rng["cuda"])
            else:
                torch.manual_seed(self.options.seed + self.crew.rank)
            yield

    def _generators(self) -> dict[str, torch.Tensor]:
        """torch's generators as they are, of this process and of its accelerator."""
        found = {"cpu": torch.get_rng_state()}
        if self.parameters[0].is_cuda:
            found["cuda"] = torch.cuda.get_rng_state()
        return found

    def state_dict(self) -> dict[str, Any]:
        """The run without the weights, as plain values and tensors."""
        return {
            "run": dict(vars(self.state)),
            "optimizer": self.crew.state(self.model, self.optimizer),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where the run stood that gave `state_dict`; the weights are the caller's."""
        self.state = Run(**state["run"])
        self.crew.load_state(self.model, self.optimizer, state["optimizer"])


def summed(losses: Iterable[Loss], crew: Crew = ALONE) -> tuple[float, int, dict[str, float]]:
    """Mean loss, items and mean metrics of several batches: sums first, then one division."""
    sums = {"": [0.0, 0.0]}
    for loss in losses:
        for name, (value, over) in {"": (loss.total, loss.count), **loss.metrics}.items():
            held = sums.setdefault(name, [0.0, 0.0])
            held[0] += float(value)
            held[1] += over
    names = sorted(sums)
    added = crew.sum(torch.tensor([sums[n] for n in names], dtype=torch.float64).flatten())
    pairs = dict(zip(names, added.view(-1, 2).tolist(), strict=True))
    means = {name: value / over if over else math.nan for name, (value, over) in pairs.items()}
    return means.pop(""), int(pairs[""][1]), means


@torch.no_grad()
def evaluate(
    model: nn.Module, objective: Objective[B], batches: Iterable[B], crew: Crew = ALONE
) -> tuple[float, dict[str, float]]:
    """Mean loss and metrics over batches, in evaluation mode; the mode is put back.

    Each process of a crew brings batches of its own.
    """
    before = model.training
    model.eval()
    try:
        mean, _, metrics = summed((objective(model, batch) for batch in batches), crew)
    finally:
        model.train(before)
    return mean, metrics


def _detached(loss: Loss) -> Loss:
    return Loss(total=loss.total.detach(), count=loss.count, metrics=loss.metrics)


@contextmanager
def _bar(options: TrainOptions) -> Iterator[Callable[[Record], None]]:
    """Something that shows records: a bar, or nothing."""
    if not options.progress:
        yield lambda record: None
        return
    columns = (
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("training", total=options.steps, loss=math.nan)
        yield lambda record: progress.update(task, completed=record.step + 1, loss=record.loss)
