"""Handles: a use's view of the pool for the rows of one step (`Handle` in state.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from keifu.nn.state import Handle, RequestState, StatePool


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """What consecutive rows of a step with as many tokens each hold of some entries."""

    rows: range
    values: tuple[Tensor, ...]
    """(rows, m, *shape) of each entry."""
    positions: Tensor
    """(m,), or (rows, m), each row's own, with positions beyond its last one where nothing is."""


def alone(handle: Handle, rows: int, names: Sequence[str]) -> Iterator[View]:
    """The views of a handle that reads each row by itself."""
    for row in range(rows):
        found = [handle.read(name, row) for name in names]
        values = tuple(value[None] for value, _ in found)
        yield View(rows=range(row, row + 1), values=values, positions=found[0][1])


class UseHandle:
    """A use's view of the pool for one step."""

    def __init__(
        self, pool: StatePool, use: int, states: Sequence[RequestState], lengths: Sequence[int]
    ) -> None:
        self._pool, self._use, self._states, self._lengths = pool, use, states, lengths

    def append(self, name: str, new: Tensor) -> None:
        """Each row's new tokens, new (tokens, *shape), into its pages."""
        index = self._pool.group_of(self._use, name)
        group = self._pool.groups[index]
        start = 0
        for state, n in zip(self._states, self._lengths, strict=True):
            row = new[start : start + n]
            group.write(self._use, name, state.tables[index], state.length, row)
            start += n

    def read(self, name: str, row: int) -> tuple[Tensor, Tensor]:
        """Values (m, *shape) and positions (m,) from a row's pages."""
        index = self._pool.group_of(self._use, name)
        state = self._states[row]
        end = state.length + self._lengths[row]
        group = self._pool.groups[index]
        return group.read(self._use, name, state.tables[index], state.length, end)

    def views(self, *names: str) -> Iterator[View]:
        """Row by row: what each holds is as long as itself."""
        return alone(self, len(self._states), names)

    def get(self, name: str) -> Tensor:
        """(R, *shape) from the rows' slots."""
        return self._pool.fixed[self._use, name][[s.slot for s in self._states]]

    def set(self, name: str, value: Tensor) -> None:
        """(R, *shape) into the rows' slots."""
        tensor = self._pool.fixed[self._use, name]
        tensor[[s.slot for s in self._states]] = value.to(tensor.dtype)

    def memory(self, name: str, row: int, make: Callable[[], Tensor]) -> Tensor:
        """(m, *shape) from a row's memory, made if nothing is there yet."""
        source, key = self._pool.memory_of(self._use, name)
        held = self._states[row].memories.get(source)
        if held is None:
            raise ValueError(f"the request was opened without its memory {source!r}")
        return self._pool.memories[source].read(*key, held, make)
