"""The loop: accumulate, clip, step, schedule, log. The one loop of every objective and model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_

from keifu.core.errors import KeifuError, unknown
from keifu.training.average import Average, Averaged
from keifu.training.bar import bar
from keifu.training.computing import PRECISIONS, at_precision, compiled, recomputed
from keifu.training.crew import ALONE, Crew
from keifu.training.groups import EVERYTHING, Group, optimizer_groups
from keifu.training.guard import Diverged, Guard, Sentry, numbers, put
from keifu.training.objective import Loss, Objective
from keifu.training.optimizer import Optimization
from keifu.training.optimizers.adamw import AdamW
from keifu.training.rate import Operations, tokens
from keifu.training.schedule import Schedule
from keifu.training.schedules.constant import Constant
from keifu.training.watch import Watch, evaluating

B = TypeVar("B")
Data = Callable[[int], B]
"""The number of a batch in the whole run, from 0 -> that batch, the same each time it is asked for.

Number k of size b holds examples k * b to k * b + b - 1 of one endless row. A step takes
accumulate * world batches from where the last one ended: process r takes every world-th, from the
r-th on. So one batch of eight, two of four and eight of one, in one process or in two, are the same
step, and to continue a run is to know the next number.
"""


_READ, _DONE = "tokens read", "operations done"
"""Sums that travel with the metrics."""


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
    """So many bad steps in a row end the run, or take it back where the guard says so"""
    precision: str = "float32"
    """float32, or bf16: products in bfloat16, weights and their optimizer in float32"""
    recompute: bool = False
    """Spare memory: a block keeps its input alone and runs again for its gradient"""
    compile: bool = False
    """Have torch compile each block: takes a C++ compiler, some seconds, rows of like lengths"""
    progress: bool = False
    """Show a bar on the terminal"""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulate < 1 or self.bad_steps < 1:
            raise KeifuError("steps, accumulate and bad_steps must be 1 or more")
        if self.clip is not None and not self.clip > 0:
            raise KeifuError(f"clip {self.clip} must be above 0, or none")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)


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
    """Loss or gradient was not finite, or a spike to the guard: the weights were left alone."""
    batches: tuple[int, int]
    """Numbers of its batches in the whole run: the first, and the first of the next step."""
    metrics: Mapping[str, float]
    seconds: float
    tokens: int = 0
    """That were read; 0 where batches have none."""
    operations: float = 0.0
    """Floating-point operations (see rate.py); 0 where they are not known."""
    back_to: int | None = None
    """The step that the run went back to after this one; the next record is of it."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """What watches found after the step: "held_out", "samples"."""


@dataclass
class Run:
    """All that a run is besides weights and optimizer: what continuing it exactly needs."""

    step: int = 0
    """Steps done."""
    batch: int = 0
    """Number of the next step's first batch."""
    skipped: int = 0
    """Steps that left the weights alone."""
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
        guard: which steps are bad.
        average: keep an average of the weights, too.
        watch: called after every step; what they find is in the step's record.
        on_step: called after that with what the step did. Neither changes what the run draws.
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
        guard: Guard = Guard(),
        average: Average | None = None,
        watch: Sequence[Watch] = (),
        on_step: Sequence[Callable[[Record], None]] = (),
        crew: Crew = ALONE,
    ) -> None:
        self.model, self.objective, self.crew = crew.prepare(model), objective, crew
        self.schedule, self.options = schedule, options
        self.watch, self.on_step = tuple(watch), tuple(on_step)
        for weight in self.model.parameters():
            if not weight.is_contiguous():  # fused updates read memory in order, states' too
                weight.data = weight.data.contiguous()
        found = optimizer_groups(self.model, groups, lr=optimization.lr, decay=optimization.decay)
        self.optimizer = crew.optimizer(optimization, found)
        self.parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.state = Run()
        self.history: list[Record] = []
        self.sentry = Sentry(guard)
        weights = {
            name: weight
            for group in self.optimizer.param_groups
            for name, weight in zip(group["names"], group["params"], strict=True)
        }
        self.average = Averaged(average, weights) if average else None
        self._operations = Operations(self.model)
        self._stopped = False

    def fit(self, data: Data[B]) -> list[Record]:
        """Run the steps that are left; returns `history`.

        Leaves the model in evaluation mode, and torch's global generator as it was.

        Raises:
            Diverged: too many steps in a row were bad, and there was no way back.
            KeifuError: a step has nothing to learn from.
        """
        self._stopped = False
        self.model.train()
        try:
            with ExitStack() as around:
                around.enter_context(self._seeded())
                around.enter_context(recomputed(self.model, self.options.recompute))
                around.enter_context(compiled(self.model, self.options.compile))
                show = around.enter_context(self._bar())
                while self.state.step < self.options.steps and not self._stopped:
                    self._hold()
                    record = self._step(data)
                    self.state.rng = self._generators()
                    record = self._judged(record)
                    found = {k: v for watch in self.watch for k, v in watch(self, record).items()}
                    record = replace(record, found=found)
                    self.history.append(record)
                    for call in (*self.on_step, show):
                        call(record)
                    self._draw_as(self.state.rng)
        finally:
            self.model.eval()
        return self.history

    def stop(self) -> None:
        """Have `fit` return after the step that runs now; it can be called again to go on."""
        self._stopped = True

    def averaged(self) -> AbstractContextManager[None]:
        """Within this the weights are their averages, where the run has any."""
        return self.average.applied() if self.average else nullcontext()

    def _step(self, data: Data[B]) -> Record:
        """One update from the batches of all processes together."""
        start = time.perf_counter()
        first, each = self.state.batch, self.options.accumulate
        self.optimizer.zero_grad()
        losses, read, operations = [], 0, 0.0
        for i in range(each):
            number = first + i * self.crew.world + self.crew.rank
            batch = data(number)
            self._draw(number)
            with at_precision(self.options.precision, self.device):
                loss = self.crew.loss(self.objective, self.model, batch)
            loss.total.backward()
            losses.append(_detached(loss))
            read, operations = read + tokens(batch), operations + self._operations.of(batch)
        losses[-1] = replace(
            losses[-1], metrics={**losses[-1].metrics, _READ: (read, 1), _DONE: (operations, 1)}
        )
        mean, count, metrics = summed(losses, self.crew)
        norm = self._gradient(count)
        batches = (first, first + each * self.crew.world)
        skipped = not self.sentry.judge(mean, norm, batches)
        factor = self.schedule.factor(self.state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor
        if not skipped:
            self._draw(first)  # alike in all processes
            self.optimizer.step()
            if self.average:
                self.average.update(self.state.step)
        world = self.crew.world
        return Record(
            step=self.state.step, loss=mean, count=count, norm=norm, skipped=skipped,
            lr=self.optimizer.param_groups[-1]["lr"], batches=batches,
            tokens=round(metrics.pop(_READ) * world), operations=metrics.pop(_DONE) * world,
            metrics=metrics, seconds=time.perf_counter() - start,
        )  # fmt: skip

    def _draw(self, number: int) -> None:
        """Draw what follows by the run's seed and a batch's number, in whatever process."""
        torch.manual_seed((self.options.seed * 1_000_003 + number) % (1 << 63))

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

    def _judged(self, record: Record) -> Record:
        """Count what a step did; too many bad ones in a row take the run back, or end it."""
        run = self.state
        run.step, run.batch = run.step + 1, record.batches[1]
        run.skipped += record.skipped
        bad = list(self.sentry.bad)
        if len(bad) < self.options.bad_steps:
            return record
        before = self.sentry.go_back()
        if before is None:
            raise Diverged(
                f"{len(bad)} steps in a row to step {record.step} had no finite loss and gradient "
                f"or were spikes (loss {record.loss:g}, gradient {record.norm:g}, lr "
                f"{record.lr:g}; batches {numbers(bad[-20:])}): lower the learning rate, warm up "
                "longer, or look for bad values in the data", bad,
            )  # fmt: skip
        put(self.model, before["weights"])
        self.optimizer.load_state_dict(before["optimizer"])
        if self.average:
            self.average.load_state_dict(before["average"])
        self.state = Run(**{**before["run"], "batch": run.batch, "skipped": run.skipped})
        return replace(record, back_to=self.state.step)

    def _hold(self) -> None:
        """Where it is time, keep the state before this step."""
        if self.sentry.due(self.state.step):
            state = {
                "run": dict(vars(self.state), rng=self._generators()),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.state_dict() if self.average else {},
                "weights": self.model.state_dict(),
            }
            self.sentry.hold(self.state.step, state)

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Within this, torch draws from the run's own generator."""
        with torch.random.fork_rng():
            if self.state.rng:
                self._draw_as(self.state.rng)
            else:
                torch.manual_seed(self.options.seed + self.crew.rank)
            yield

    def _draw_as(self, generators: Mapping[str, torch.Tensor]) -> None:
        torch.set_rng_state(generators["cpu"])
        if "cuda" in generators:
            torch.cuda.set_rng_state(generators["cuda"], self.device)

    def _generators(self) -> dict[str, torch.Tensor]:
        """torch's generators as they are, of this process and of its accelerator."""
        found = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            found["cuda"] = torch.cuda.get_rng_state(self.device)
        return found

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        found: torch.device = self.parameters[0].device
        return found

    def _bar(self) -> AbstractContextManager[Callable[[Record], None]]:
        """What shows records: a bar, or nothing."""
        options = self.options
        if not options.progress:
            return nullcontext(lambda record: None)
        return bar(options.steps, self.device, options.precision, self.crew.world)

    def state_dict(self) -> dict[str, Any]:
        """The run without the weights, as plain values and tensors."""
        return {
            "run": dict(vars(self.state)),
            "optimizer": self.crew.state(self.model, self.optimizer),
            "guard": self.sentry.state_dict(),
            "average": self.crew.together(self.average.state_dict()) if self.average else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where the run stood that gave `state_dict`; the weights are the caller's."""
        self.state = Run(**state["run"])
        self.sentry.load_state_dict(state["guard"])
        if self.average:
            self.average.load_state_dict(self.crew.apart(state["average"]))
        self.crew.load_state(self.model, self.optimizer, state["optimizer"])


def summed(losses: Iterable[Loss], crew: Crew = ALONE) -> tuple[float, int, dict[str, float]]:
    """Mean loss, items and mean metrics of several batches: sums first, then one division."""
    sums = {"": [0.0, 0.0]}
    for loss in losses:
        for name, (value, over) in {"": (loss.total, loss.count), **loss.metrics}.items():
            held = sums.setdefault(name, [0.0, 0.0])
            held[0] += float(value)
            held[1] += over
    added: dict[str, list[float]] = {}
    for each in crew.gather(sums):
        for name, (value, over) in each.items():
            held = added.setdefault(name, [0.0, 0.0])
            held[0] += value
            held[1] += over
    means = {name: value / over if over else math.nan for name, (value, over) in added.items()}
    return means.pop(""), int(added[""][1]), means


@torch.no_grad()
def evaluate(
    model: nn.Module,
    objective: Objective[B],
    batches: Iterable[B],
    crew: Crew = ALONE,
    precision: str = "float32",
) -> tuple[float, dict[str, float]]:
    """Mean loss and metrics over batches, in evaluation mode; the mode is put back.

    Each process of a crew brings batches of its own.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with evaluating(model), at_precision(precision, device):
        mean, _, metrics = summed((crew.loss(objective, model, batch) for batch in batches), crew)
    return mean, metrics


def _detached(loss: Loss) -> Loss:
    return Loss(total=loss.total.detach(), count=loss.count, metrics=loss.metrics)
