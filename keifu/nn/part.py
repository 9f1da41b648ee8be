"""A part is a value that says what a piece of a model is; building it makes the module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

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


def build(part: Part, *, device: str | torch.device | None = None) -> nn.Module:
    """Build a part on a device; on "meta" nothing is allocated, only shapes exist."""
    if device is None:
        return part.build()
    with torch.device(device):
        return part.build()


def count(part: Part) -> int:
    """Parameters of the built part, each counted once, without allocating any."""
    return sum(p.numel() for p in build(part, device="meta").parameters())
