"""What a model's state is kept in: bfloat16, or 8-bit codes where those are faster."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from torch import nn

from keifu.core.errors import KeifuError, unknown
from keifu.inference.plans import whole

if TYPE_CHECKING:
    from keifu.lm.opening import LocalOptions

STATES = ("default", "bf16", "int8")


def with_state(options: LocalOptions, model: nn.Module) -> LocalOptions:
    """The options with the state that they ask for, or by default the faster one."""
    if options.state == "default":
        codes = options.precision == "default" and options.device == "cpu"
        codes = codes and options.tensor_parallel == 1 and whole(model)
        return dataclasses.replace(options, state="int8" if codes else "bf16")
    return options


def check_state(options: LocalOptions) -> None:
    """Refuse a state that there is not, or not here."""
    if options.state not in STATES:
        raise unknown("state", options.state, STATES)
    if options.state != "default" and options.precision == "exact":
        raise KeifuError("precision='exact' keeps its state in float32: leave state out")
    if options.state == "int8" and options.device != "cpu":
        raise KeifuError(f"state='int8' is for processors, not {options.device}: leave it out")
