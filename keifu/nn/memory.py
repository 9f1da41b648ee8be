"""Memories that requests read while they generate: written once, shared by forks, counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from keifu.nn.pages import OutOfState, PageGroup, PageTable


@dataclass(eq=False)
class Held:
    """One memory: its places in the pages, which entries are written, how many requests read it."""

    length: int
    table: PageTable = field(default_factory=PageTable)
    written: set[tuple[int, str]] = field(default_factory=set)
    readers: int = 1


class MemoryGroup:
    """Storage of all entries that are made of one memory, in the pages of one group."""

    def __init__(self, pages: PageGroup) -> None:
        self.pages = pages

    def open(self, length: int) -> Held:
        """Places for a memory of `length`, or OutOfState with nothing taken."""
        held = Held(length)
        if self.pages.pages_for(held.table, length) > len(self.pages.free):
            raise OutOfState(f"the state pool has no room for a memory of {length}")
        self.pages.grow(held.table, length)
        return held

    def share(self, held: Held) -> Held:
        """The same memory for one more reader."""
        held.readers += 1
        return held

    def drop(self, held: Held) -> None:
        """One reader less; the last one gives the pages back."""
        held.readers -= 1
        if held.readers == 0:
            self.pages.release(held.table)

    def read(self, use: int, name: str, held: Held, make: Callable[[], Tensor]) -> Tensor:
        """An entry's values (length, *shape), made and written by the first who asks."""
        if (use, name) not in held.written:
            value = make()
            if value.shape[0] != held.length:
                raise ValueError(f"a memory of {value.shape[0]} does not fill one of {held.length}")
            self.pages.write(use, name, held.table, 0, value)
            held.written.add((use, name))
        return self.pages.storage[use, name][self.pages.slots(held.table, 0, held.length)]
