"""The block: a token mixer, an optional cross mixer and a channel mixer, wired by a value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from keifu.nn.handles import View
from keifu.nn.part import Part
from keifu.nn.split import Rank, Split, combined
from keifu.nn.state import Entry, Handle
from keifu.nn.step import Step
from keifu.nn.wiring import Wiring


@dataclass(frozen=True, kw_only=True)
class Block(Part):
    """Residual(token mixer), then residual(channel mixer), as the wiring says.

    A part in any of the places takes (x, step, state) and returns a tensor like x.
    """

    mixer: Part
    wiring: Wiring
    mlp: Part | None = None
    cross: Part | None = None
    aside: Part | None = None
    """A branch from the block's input to its end (DeBERTa v2's convolution), as the wiring says."""

    def branches(self) -> dict[str, Part]:
        """The parts by their place, in the order they run."""
        places = (self.mixer, self.cross, self.mlp, self.aside)
        found = dict(zip(("mixer", "cross", "mlp", "aside"), places, strict=True))
        return {name: part for name, part in found.items() if part is not None}

    def build(self) -> nn.Module:
        """The branches and the wiring's norms, under their names."""
        return _Block(self)

    def state(self) -> Mapping[str, Entry]:
        """All branches' entries, named "mixer.k" and so on."""
        return {
            f"{branch}.{name}": entry
            for branch, part in self.branches().items()
            for name, entry in part.state().items()
        }

    def split(self, rank: Rank) -> Split:
        """The branches' shares."""
        shares = {name: part.split(rank) for name, part in self.branches().items()}
        parts: dict[str, Any] = {name: share.part for name, share in shares.items()}
        return combined(replace(self, **parts), shares)


def scoped(state: Handle | None, name: str) -> Handle | None:
    """The view that a branch has of its block's state, or a part inside a part of its owner's."""
    return None if state is None else _Scoped(state, name)


class _Scoped:
    def __init__(self, handle: Handle, branch: str) -> None:
        self._handle, self._branch = handle, branch

    def append(self, name: str, new: Tensor) -> None:
        self._handle.append(f"{self._branch}.{name}", new)

    def read(self, name: str, row: int) -> tuple[Tensor, Tensor]:
        return self._handle.read(f"{self._branch}.{name}", row)

    def views(self, *names: str) -> Iterable[View]:
        return self._handle.views(*(f"{self._branch}.{name}" for name in names))

    def get(self, name: str) -> Tensor:
        return self._handle.get(f"{self._branch}.{name}")

    def set(self, name: str, value: Tensor) -> None:
        self._handle.set(f"{self._branch}.{name}", value)

    def memory(self, name: str, row: int, make: Callable[[], Tensor]) -> Tensor:
        return self._handle.memory(f"{self._branch}.{name}", row, make)


class _Block(nn.Module):
    def __init__(self, spec: Block) -> None:
        super().__init__()
        self.spec = spec
        parts = spec.branches()
        for name, part in parts.items():
            self.add_module(name, part.build())
        norms = spec.wiring.norms(list(parts))
        self.norms = nn.ModuleDict({name: norm.build() for name, norm in norms.items()})

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        """x (tokens, width) -> (tokens, width)."""
        branches = {
            name: partial(self._branch, name, step=step, state=scoped(state, name))
            for name in self.spec.branches()
        }
        return self.spec.wiring.run(x, branches, self.norms)

    def _branch(self, name: str, x: Tensor, *, step: Step, state: Handle | None) -> Tensor:
        """One part, in the precision that the step asks for; adding it to the stream promotes."""
        if step.compute is not None:
            x = x.to(step.compute)
        y: Tensor = self.get_submodule(name)(x, step, state)
        return y
