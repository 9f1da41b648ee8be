"""Plans: fast paths for models whose parts they know, found by value."""

from __future__ import annotations

from keifu.inference.runner import Runner
from keifu.nn.stack import StackModule
from keifu.nn.state import StatePool


def runners(model: StackModule, pool: StatePool) -> list[Runner]:
    """The fast runners that this model and this machine allow, best first."""
    return []
