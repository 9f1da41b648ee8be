"""A grid of rows with one token each: what a step that is recorded once reads and writes.

Every tensor keeps its place and its shape from step to step; what changes from request to request
(where a row writes, which pages it reads, at which positions) lies in tensors that are filled anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from keifu.nn.handles import View
from keifu.nn.pages import PageGroup
from keifu.nn.state import StatePool

NOWHERE = 1 << 40
"""The position of a page that is none: beyond every query, so no mask that looks back shows it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Where the rows of a step find a group's pages. Legend: R = rows, P = pages a row."""

    page: int
    """Places of a page."""
    slots: Tensor
    """(R,) where each row's new token goes in the group's storage."""
    pages: Tensor
    """(R, P) page numbers, those of no page too: they are of nobody else."""
    starts: Tensor
    """(R, P) the position of each page's first place, NOWHERE of no page."""

    def places(self) -> tuple[Tensor, Tensor]:
        """Where all places of all pages lie in the storage, and their positions: (R, P * page)."""
        step = torch.arange(self.page, device=self.pages.device)
        index = (self.pages[..., None] * self.page + step).flatten(1)
        return index, (self.starts[..., None] + step).flatten(1)


class GridHandle:
    """One use's state for a grid of rows.

    Args:
        storage: by name, a group's storage of the use's per-token entries.
        tables: by name, that group's table.
        fixed: by name, the use's fixed entries (slots, *shape).
        slots: (R,) each row's slot.
        positions: (R,) each row's token.
    """

    def __init__(
        self,
        storage: Mapping[str, Tensor],
        tables: Mapping[str, Table],
        fixed: Mapping[str, Tensor],
        slots: Tensor,
        positions: Tensor,
    ) -> None:
        self.storage, self.tables, self.fixed = storage, tables, fixed
        self.slots, self.positions = slots, positions

    def append(self, name: str, new: Tensor) -> None:
        """Each row's token, new (R, *shape), into its page."""
        storage = self.storage[name]
        storage.index_copy_(0, self.tables[name].slots, new.to(storage.dtype))

    def read(self, name: str, row: int) -> tuple[Tensor, Tensor]:
        """Never: rows are read together."""
        raise NotImplementedError("a grid's rows are read together")

    def views(self, *names: str) -> Iterator[View]:
        """All rows at once; places beyond a row's token read as zeros, whatever lies there."""
        index, positions = self.tables[names[0]].places()
        beyond = positions > self.positions[:, None]
        values = []
        for name in names:
            found = self.storage[name][index]
            values.append(found.masked_fill(beyond[(...,) + (None,) * (found.dim() - 2)], 0))
        rows = range(len(self.positions))
        yield View(rows=rows, values=tuple(values), positions=positions)

    def get(self, name: str) -> Tensor:
        """(R, *shape) from the rows' slots."""
        return self.fixed[name].index_select(0, self.slots)

    def set(self, name: str, value: Tensor) -> None:
        """(R, *shape) into the rows' slots."""
        kept = self.fixed[name]
        kept.index_copy_(0, self.slots, value.to(kept.dtype))

    def memory(self, name: str, row: int, make: Callable[[], Tensor]) -> Tensor:
        """Never: memories are as long as their sources."""
        raise NotImplementedError("a grid's rows have no memories")


def pages_of(group: PageGroup, length: int) -> int:
    """Pages that the next token of a row needs to see, once it holds `length`, at most."""
    if group.window is None:
        return -(-(length + 1) // group.page)
    near = -(-group.window // group.page) + 1
    return min(-(-group.sinks // group.page) + near, -(-(length + 1) // group.page))


def handles(
    pool: StatePool, tables: list[Table], slots: Tensor, positions: Tensor
) -> list[GridHandle]:
    """One handle a use, over a table a group of the pool."""
    made = []
    for use in range(len(pool.entries)):
        storage: dict[str, Tensor] = {}
        found: dict[str, Table] = {}
        for group, table in zip(pool.groups, tables, strict=True):
            own = {n: t for (u, n), t in group.storage.items() if u == use}
            storage |= own
            found |= dict.fromkeys(own, table)
        fixed = {n: t for (u, n), t in pool.fixed.items() if u == use}
        made.append(GridHandle(storage, found, fixed, slots, positions))
    return made
