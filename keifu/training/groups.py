"""Parameter groups: which parameters learn, how fast, and with how much weight decay."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from keifu.core.errors import KeifuError, nearest
from keifu.nn.pair import PairModule
from keifu.nn.stack import StackModule


@dataclass(frozen=True, kw_only=True)
class Group:
    """The parameters whose names fit a pattern and no earlier group's.

    A pattern is a name with `*` for any text: "blocks.0.*", "*.bias", "*".
    """

    pattern: str
    lr: float = 1.0
    """Times the optimizer's learning rate"""
    decay: float | None = None
    """Weight decay (default: the optimizer's)"""
    vectors: bool = True
    """Decay biases and norms too, not only matrices"""
    frozen: bool = False
    """Left as it is: no gradient, no update"""


EVERYTHING = (Group(pattern="*"),)
"""One group of all parameters."""


def assign(model: nn.Module, groups: Sequence[Group]) -> dict[str, Group]:
    """Each parameter's group: the first whose pattern fits its name.

    Raises:
        KeifuError: lists the parameters that are in no group, and the groups that have none.
    """
    names = [name for name, _ in model.named_parameters()]
    found: dict[str, Group] = {}
    for name in names:
        fitting = [g for g in groups if fnmatch.fnmatchcase(name, g.pattern)]
        if fitting:
            found[name] = fitting[0]
    left = [name for name in names if name not in found]
    idle = [g.pattern for g in groups if not any(f is g for f in found.values())]
    faults = []
    if left:
        faults.append(f"{len(left)} parameters are in no group: {', '.join(left[:6])}")
    if idle:
        close = [near for pattern in idle for near in nearest(pattern, names, 1)]
        hint = f" (nearest: {', '.join(close)})" if close else ""
        faults.append(f"groups without a parameter of their own: {', '.join(idle[:6])}{hint}")
    if faults:
        raise KeifuError("; ".join(faults))
    return found


def optimizer_groups(
    model: nn.Module, groups: Sequence[Group], *, lr: float, decay: float
) -> list[dict[str, Any]]:
    """torch's parameter groups, and `requires_grad` set on every parameter of the model.

    Each has "params", "lr", "weight_decay", "names" and "base", the learning rate that schedules
    multiply. Frozen parameters are in none.
    """
    made: dict[tuple[int, bool], dict[str, Any]] = {}
    parameters = dict(model.named_parameters())
    for name, group in assign(model, groups).items():
        parameter = parameters[name]
        parameter.requires_grad_(not group.frozen)
        if group.frozen:
            continue
        spared = parameter.dim() < 2 and not group.vectors
        weight = 0.0 if spared else decay if group.decay is None else group.decay
        rate = lr * group.lr
        entry = made.setdefault(
            (next(i for i, g in enumerate(groups) if g is group), spared),
            {"params": [], "names": [], "lr": rate, "base": rate, "weight_decay": weight},
        )
        entry["params"].append(parameter)
        entry["names"].append(name)
    if not made:
        raise KeifuError("every group is frozen: there is nothing to train")
    return [made[key] for key in sorted(made)]


def layers(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """A model's layers from the input to the output, each as the patterns of its parameters.

    Input, block after block, and all that stands on top of them (norm, readout, heads) as the
    last; of a pair the encoder's first.
    """
    if isinstance(model, PairModule):
        places = [
            tuple(f"{side}.{pattern}" for pattern in layer)
            for side in ("encoder", "decoder")
            for layer in layers(model.get_submodule(side))
        ]
    elif isinstance(model, StackModule):
        blocks = [(f"blocks.{i}.*",) for i in range(len(model.blocks))]
        top = ("norm.*", "readout.*", "head.*", "heads.*")
        places = [("input.*", "shared.*", "memory"), *blocks, top]
    else:
        raise KeifuError(f"the layers of a {type(model).__name__} are not known: name patterns")
    names = [name for name, _ in model.named_parameters()]
    kept = [tuple(p for p in layer if fnmatch.filter(names, p)) for layer in places]
    return tuple(layer for layer in kept if layer)


def discriminative(
    layers: Sequence[str | Sequence[str]], ratio: float = 2.6, **fields: Any
) -> tuple[Group, ...]:
    """One learning rate a layer, each `ratio` times that of the layer below.

    Howard & Ruder 2018, section 3.2: the last layer has the whole rate.

    Args:
        layers: patterns from the input to the output; several patterns may be one layer.
        fields: of every group (decay, vectors).
    """
    top = len(layers) - 1
    return tuple(
        Group(pattern=pattern, lr=ratio ** (i - top), **fields)
        for i, layer in enumerate(layers)
        for pattern in ([layer] if isinstance(layer, str) else layer)
    )


def thawed(groups: Sequence[Group], rates: int) -> tuple[Group, ...]:
    """The groups with the highest `rates` learning rates train, the others are frozen.

    Gradual unfreezing (Howard & Ruder 2018, section 3.3): one more of the layers of
    `discriminative` with each epoch, the last first.
    """
    if rates < 1:
        raise KeifuError(f"{rates} layers cannot be trained: 1 or more")
    levels = sorted({g.lr for g in groups}, reverse=True)[:rates]
    return tuple(replace(g, frozen=g.frozen or g.lr not in levels) for g in groups)
