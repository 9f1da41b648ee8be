"""What a run will take, told before it begins: memory, arithmetic, time, energy.

Memory and arithmetic of a step are counted on a model without weights ("meta"), by running one row
forwards and backwards there: every matrix product is counted, and every tensor that the backward
pass keeps. So they hold for any family. Time is the arithmetic over a peak that is measured now and
a share of it that is assumed; energy is time and an assumed power. The assumptions are told.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from keifu.core import machine
from keifu.nn.pair import PairModule
from keifu.nn.part import Part, build
from keifu.nn.stack import StackModule
from keifu.nn.step import fresh_step
from keifu.training.groups import optimizer_groups
from keifu.training.recipe import Recipe

UTILISATION = 0.4
"""Share of the peak that training is assumed to reach."""
WATTS = 15.0
"""A core under load is assumed to draw."""
_SIDE = 1024


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes, floating-point operations, seconds and watt-hours of a run."""

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    activations: int | None
    """Kept for the backward pass of one batch; None: not known for this family."""
    tokens: int
    """Of a step, at most."""
    operations: float
    """Of a step."""
    steps: int
    peak: float
    """Measured: operations a second of float32 matrix products."""
    seconds: float
    watt_hours: float
    assumed: tuple[str, ...]

    @property
    def memory(self) -> int:
        """All bytes together."""
        return self.weights + self.gradients + self.optimizer + (self.activations or 0)

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "memory": self.memory}


def plan(recipe: Recipe, spec: Part, world: int = 1) -> Plan:
    """What the recipe's run of this model takes, each of `world` processes the same memory."""
    model = build(spec, device="meta")
    groups = optimizer_groups(
        model, recipe.groups, lr=recipe.optimizer.lr, decay=recipe.optimizer.decay
    )
    trained = [p for group in groups for p in group["params"]]
    weights = _bytes(model.parameters())
    length, rows = recipe.data.length, recipe.data.batch
    each = recipe.train.accumulate * world
    assumed = [
        f"{UTILISATION:.0%} of the peak is reached",
        f"a core draws {WATTS:.0f} W",
        "logits are held whole",
    ]
    counted = _row(model, length)
    if counted is None:
        kept = None
        operations = 6.0 * sum(p.numel() for p in model.parameters()) * length
        assumed.append("6 operations a parameter and token (the family cannot be counted)")
    else:
        operations, kept = counted[0], counted[1] * rows
    whole = operations * rows * each
    found, count = _peak(), torch.get_num_threads()
    seconds = whole * recipe.train.steps / (found * UTILISATION * world)
    return Plan(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in trained),
        weights=weights,
        gradients=_bytes(trained),
        optimizer=_moments(recipe, groups),
        activations=kept,
        tokens=rows * length * each,
        operations=whole,
        steps=recipe.train.steps,
        peak=found,
        seconds=seconds,
        watt_hours=seconds / 3600 * WATTS * count * world,
        assumed=tuple(assumed),
    )


def told(plan: Plan, free: int | None = None) -> str:
    """For a person."""
    free = machine.memory().available if free is None else free
    kept = "unknown" if plan.activations is None else _size(plan.activations)
    lines = [
        f"parameters  {plan.parameters:,} ({plan.trained:,} train)",
        f"memory      {_size(plan.memory)} of {_size(free)} free: weights {_size(plan.weights)}, "
        f"gradients {_size(plan.gradients)}, optimizer {_size(plan.optimizer)}, activations {kept}",
        f"arithmetic  {plan.operations:.3g} operations a step of {plan.tokens:,} tokens, "
        f"{plan.operations * plan.steps:.3g} in {plan.steps:,} steps",
        f"time        {_time(plan.seconds)} (measured peak {plan.peak / 1e9:.0f} GFLOP/s)",
        f"energy      {plan.watt_hours:.3g} Wh",
        f"assumed     {'; '.join(plan.assumed)}",
    ]
    if plan.memory > free:
        lines.append("This does not fit: a smaller data.batch, data.length or model would.")
    return "\n".join(lines)


def _row(model: nn.Module, length: int) -> tuple[float, int] | None:
    """Operations of one row, forwards and backwards, and the bytes kept between the two."""
    kept: dict[int, int] = {}
    own = {id(p) for p in model.parameters()}

    def keep(value: Tensor) -> Tensor:
        if id(value) not in own and not isinstance(value, nn.Parameter):
            base = value if value._base is None else value._base
            if id(base) not in own:
                kept[id(base)] = base.numel() * base.element_size()
                held.append(base)
        return value

    held: list[Tensor] = []  # so that no number is given twice
    ids = torch.zeros(length, dtype=torch.long, device="meta")
    model.train()
    counter = FlopCounterMode(display=False)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value)
    try:
        with counter, hooks:
            step = fresh_step([length], torch.device("meta"))
            if isinstance(model, PairModule):
                return None
            assert isinstance(model, StackModule)
            found = model.run(ids, step)
            out = found.hidden if found.logits is None else found.logits
            out.sum().backward()
    except (RuntimeError, NotImplementedError, TypeError, ValueError):  # needs what "meta" has not
        return None
    return float(counter.get_total_flops()), sum(kept.values())


def _moments(recipe: Recipe, groups: list[dict[str, Any]]) -> int:
    """Bytes of the optimizer's state, from one step of it without values; Adam's if it has none."""
    optimizer = recipe.optimizer.build(groups)
    parameters = [p for group in groups for p in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    try:
        optimizer.step()
    except (RuntimeError, NotImplementedError):  # it looks at values
        return 2 * _bytes(parameters)
    values = (v for state in optimizer.state.values() for v in state.values())
    return _bytes(v for v in values if isinstance(v, Tensor) and v.dim())


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _peak() -> float:
    """Operations a second of a float32 matrix product here, the best of a few."""
    a, b = torch.randn(_SIDE, _SIDE), torch.randn(_SIDE, _SIDE)
    best = 0.0
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * _SIDE**3 / (time.perf_counter() - start))
    return best


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
