"""Lowering: what the parts of a stack share while they become operations of one native tape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from keifu.nn.kernels.tape import Tape, Turn, Value
from keifu.nn.kernels.tiles import Tiled, supported, tile
from keifu.nn.linear import Linear, Weight
from keifu.nn.norms import LayerNorm, PerHeadNorm, RMSNorm
from keifu.nn.rotary import Rotary
from keifu.nn.state import StatePool
from keifu.nn.step import Step

TABLE = 1 << 20
"""Most entries of a rotary table that is kept for all positions."""


class Tables(Protocol):
    """What gives rotary tables; equal ones give the same."""

    def tables(self, step: Step) -> tuple[Tensor, Tensor]:
        """cos and sin (tokens, width / 2)."""

    def __hash__(self) -> int: ...


class Unplanned(Exception):
    """A part that no plan knows, in words."""


@dataclass(frozen=True)
class Place:
    """Where a part stands: a use of a block, and its branch; its state is named after both."""

    use: int
    branch: str

    def entry(self, name: str) -> tuple[int, str]:
        """The state pool's key of an entry that the part declares."""
        return self.use, f"{self.branch}.{name}"


@dataclass
class Lowering:
    """One model's tape while it is built."""

    pool: StatePool
    tape: Tape
    context: int
    turns: dict[Tables, Turn] = field(default_factory=dict)
    kept: set[tuple[int, str]] = field(default_factory=set)
    """The fixed entries that some part reads."""

    def weight(self, owner: Weight) -> list[Tiled]:
        """A weight's pieces for the kernels; the plain path decodes the same ones from now on."""
        if not owner.tiles:
            values = [owner.weight] if owner.weight is not None else list(owner.pieces)
            for value in values:
                if not supported(value):
                    kind = value.dtype if isinstance(value, Tensor) else value.format.name
                    raise Unplanned(f"no kernel for {kind} weights")
            owner.tiles = tuple(tile(value) for value in values)
        return list(owner.tiles)

    def linear(
        self, module: Any, x: Value, into: Value | None = None, *, bias: Tensor | None = None
    ) -> Value:
        """A product; `into` adds it to the residual in place, `bias` is instead of the module's."""
        if not isinstance(module, Linear) or module.deltas:
            raise Unplanned("adapters on a projection")
        bias = vector(module.bias) if bias is None else bias
        return self.tape.linear(x, self.weight(module), bias, into=into, add=into is not None)

    def norm(self, module: Any, x: Value, heads: int = 1, into: Value | None = None) -> Value:
        """RMS or layer norm, of the whole or of each head."""
        match module.spec:
            case RMSNorm(eps=eps, offset=offset):
                kind = "rms"
            case LayerNorm(eps=eps, offset=offset):
                kind = "layer"
            case PerHeadNorm(eps=eps):
                kind, offset = "layer", 0.0
            case other:
                raise Unplanned(f"norm {type(other).__name__}")
        weight = None if module.weight is None else vector(module.weight) + offset
        bias = vector(module.bias) if kind == "layer" and "bias" in module._parameters else None
        return self.tape.norm(x, weight, bias, eps=eps, kind=kind, heads=heads, into=into)

    def fixed(self, place: Place, name: str) -> Tensor:
        """Where a part keeps a fixed entry of all requests: (slots, ...)."""
        self.kept.add(place.entry(name))
        return self.pool.fixed[place.entry(name)]

    def turn(self, position: Rotary, tables: Tables | None = None) -> Turn:
        """Rotary tables: of all positions where that is small, else of each step's rows.

        tables: what makes those of a step, where it is not the scheme itself.
        """
        key = tables or position
        if key not in self.turns:
            half, pairs = position.width // 2, position.layout == "interleaved"
            by_length = position.scaling.by_length
            by_row = tables is not None or by_length or self.context * half > TABLE
            if by_row:
                empty = torch.zeros(self.tape.rows, half)
                made = Turn(cos=empty, sin=empty.clone(), interleaved=pairs, by_row=True)
            else:
                cos, sin = position.at(torch.arange(self.context), self.context)
                made = Turn(cos=cos.contiguous(), sin=sin.contiguous(), interleaved=pairs)
            self.turns[key] = made
        return self.turns[key]


Lower = Callable[[Lowering, Place, Any, Value, Value | None], Value]
"""A part of a block: (what is shared, place, module, input, residual to add to) -> value."""


def vector(parameter: Tensor | None) -> Any:
    """A small parameter as the kernels read it."""
    return None if parameter is None else parameter.detach().float()
