"""A part is a value that says what a piece of a model is; building it makes the module."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import nn

from keifu.nn.split import Rank, Split

if TYPE_CHECKING:
    from keifu.nn.state import Entry


class Part:
    """Base of every part: a frozen keyword-only dataclass beside the module it builds.

    Two parts are equal when they describe the same thing, so specs can be compared, printed as
    differences between families and lowered to fast paths by value.
    """

    def build(self) -> nn.Module:
        """Make the module with uninitialised or default-initialised parameters."""
        raise NotImplementedError

    def state(self) -> Mapping[str, Entry]:
        """What this part remembers between steps while a model generates; nothing by default."""
        return {}

    def split(self, rank: Rank) -> Split:
        """One process's share of this part; whole, so that every process has it, by default.

        Raises:
            ConfigError: so many processes cannot share it.
        """
        return Split(part=self)


class Initialised(nn.Module):
    """A module whose first values are its own affair, not N(0, std): an LSTM's, Mamba's poles."""

    def initialise(self, generator: torch.Generator) -> None:
        """Set what below this module does not start from N(0, std)."""
        raise NotImplementedError


_device: ContextVar[torch.device | None] = ContextVar("device", default=None)


def parameter(*shape: int, fill: float | None = None) -> nn.Parameter:
    """A parameter on the device that `build` was asked for, uninitialised or filled.

    Parts make their parameters with this: a `with torch.device(...)` block would slow every
    tensor function down while a model of hundreds of parts is built.
    """
    where = _device.get()
    if fill is None:
        return nn.Parameter(torch.empty(shape, device=where))
    return nn.Parameter(torch.full(shape, fill, device=where))


def build(part: Part, *, device: str | torch.device | None = None) -> nn.Module:
    """Build a part on a device; on "meta" nothing is allocated, only shapes exist."""
    token = _device.set(None if device is None else torch.device(device))
    try:
        return part.build()
    finally:
        _device.reset(token)


def count(part: Part) -> int:
    """Parameters of the built part, each counted once, without allocating any."""
    return sum(p.numel() for p in build(part, device="meta").parameters())
