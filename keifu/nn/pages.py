"""Pages: storage for per-token state that shares one window, with a table a request."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from keifu.core.errors import KeifuError

if TYPE_CHECKING:
    from keifu.nn.state import Memory, PerToken


class OutOfState(KeifuError):
    """The pool's byte budget is used up: the scheduler preempts or queues."""


def most_held(length: int, window: int | None, sinks: int, step: int, page: int) -> int:
    """Most tokens of a request of `length` that lie in pages at once, `step` new ones at a time."""
    if window is None:
        return length + page
    return min(length + page, sinks + window + step + 3 * page)  # three pages are filled in part


@dataclass
class PageTable:
    """A request's pages in order of position; None where a window has let one go."""

    pages: list[int | None] = field(default_factory=list)
    gone: int = 0
    """Pages that were let go: the sinks before them stay."""
    start: int = 0
    """The position whose place is the first of the first page; what came before is forgotten."""


class PageGroup:
    """Storage of all entries with the same window: (pages * page, *shape) an entry.

    Consecutive pages are preferred, so that a lone request reads its past as a plain view.
    """

    def __init__(
        self,
        members: Sequence[tuple[int, str, PerToken | Memory]],
        window: int | None,
        sinks: int,
        pages: int,
        page: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.window, self.sinks, self.pages, self.page = window, sinks, pages, page
        # Reserved but not touched: on a CPU, memory is only taken once a page is written.
        self.forms = {(use, name): entry.form(dtype) for use, name, entry in members}
        for form in self.forms.values():
            if page % form.together:
                raise ValueError(
                    f"pages of {page} places do not hold whole tiles of {form.together}"
                )
        self.storage = {key: form.empty(pages * page, device) for key, form in self.forms.items()}
        self.token_bytes = sum(form.bytes for form in self.forms.values())
        self.free = list(range(pages))
        self.counts = [0] * pages
        """Owners of each page: tables, and what keeps pages for later."""
        self.kept = [0] * pages
        """How many of them keep it for later, and give it back when it is asked for."""
        self.reclaim: Callable[[], bool] = lambda: False
        """Asks those for pages; False once they have none."""

    def room(self, pages: int) -> bool:
        """Whether so many pages are free, once what is kept for later has given way."""
        while len(self.free) < pages and self.reclaim():
            pass
        return len(self.free) >= pages

    @property
    def idle(self) -> int:
        """Pages that can be had: the free ones, and those that are only kept for later."""
        kept = sum(k > 0 and k == n for k, n in zip(self.kept, self.counts, strict=True))
        return len(self.free) + kept

    def keep(self, pages: Sequence[int | None]) -> None:
        """One more owner of these pages, for later."""
        for page in pages:
            if page is not None:
                self.counts[page] += 1
                self.kept[page] += 1

    def part(self, pages: Sequence[int | None]) -> None:
        """The same owner gives them back."""
        for page in pages:
            if page is not None:
                self.kept[page] -= 1
            self._drop(page)

    def take(self, table: PageTable, pages: Sequence[int | None]) -> None:
        """Give an empty table pages of a past that others hold too; `own` has to follow."""
        table.pages = list(pages)
        for page in pages:
            if page is not None:
                self.counts[page] += 1

    def own(self, table: PageTable, length: int) -> None:
        """Fit taken pages to a past of `length`: a partly filled last one is copied, what no
        window reaches is let go.

        Raises:
            OutOfState: there is no page for the copy.
        """
        self._own_last(table, length)
        self.trim(table, length)

    def needed(self, length: int) -> list[int]:
        """Which pages, counted from the first, a request must hold to go on after `length`."""
        end = -(-length // self.page)
        first = 0 if self.window is None else max(length - self.window + 1, 0) // self.page
        return [*range(min(-(-self.sinks // self.page), first)), *range(first, end)]

    def reach(self, step: int) -> int:
        """How long one request may grow that takes `step` tokens at a time, alone."""
        room = self.pages * self.page
        return room if most_held(2**62, self.window, self.sinks, step, self.page) > room else 2**62

    def pages_for(self, table: PageTable, end: int) -> int:
        """Pages missing until positions below `end` have a place."""
        return max(0, -(-(end - table.start) // self.page) - len(table.pages))

    def grow(self, table: PageTable, end: int) -> None:
        """Take the missing pages, next to the last one where possible."""
        for _ in range(self.pages_for(table, end)):
            last = table.pages[-1] if table.pages else None
            at = 0
            if last is not None:
                at = bisect.bisect_left(self.free, last + 1)
                if at == len(self.free):
                    at = 0
            page = self.free.pop(at)
            self.counts[page] = 1
            table.pages.append(page)

    def _drop(self, page: int | None) -> None:
        if page is None:
            return
        self.counts[page] -= 1
        if self.counts[page] == 0:
            bisect.insort(self.free, page)

    def trim(self, table: PageTable, length: int) -> None:
        """Let go of pages wholly before the window of the next token, except the sinks'."""
        if self.window is None:
            return
        first = self._window(table, length) // self.page
        sinks = -(-max(self.sinks - table.start, 0) // self.page)
        for i in range(max(table.gone, sinks), first):
            self._drop(table.pages[i])
            table.pages[i] = None
            table.gone = i + 1

    def _window(self, table: PageTable, length: int) -> int:
        """Places from the table's start to the first that the token after `length` sees."""
        first = 0 if self.window is None else length - self.window + 1
        return max(first - table.start, 0)

    def holds(self, table: PageTable, length: int) -> bool:
        """Whether a request cut back to `length` would still find its window."""
        if length < table.start:
            return False
        if table.gone == 0 or self.window is None:
            return True
        return self._window(table, length) // self.page >= table.gone

    def forget(self, table: PageTable, before: int, length: int) -> None:
        """Let go of what lies before a position; the rest moves to the front of pages of its own.

        Raises:
            KeifuError: a part of the first tokens, which always stay, would be forgotten.
            OutOfState: there is no room for them while the old ones are held; nothing is changed.
        """
        before = min(before, length)
        if before <= table.start:
            return
        if table.gone and before < self.sinks:
            raise KeifuError(f"the first {self.sinks} tokens stay: forget none or all of them")
        fresh = self.opened(before, length)
        at = before if before < self.sinks else before + self._window(fresh, length)
        theirs, mine = self.slots(table, at, length), self.slots(fresh, at, length)
        for key, storage in self.storage.items():
            self.forms[key].move(storage, theirs, mine)
        self.release(table)
        table.pages, table.gone, table.start = fresh.pages, fresh.gone, before

    def opened(self, start: int, length: int) -> PageTable:
        """A table from `start` to `length` with pages for what its window reaches.

        Raises:
            OutOfState: with nothing taken.
        """
        table = PageTable(start=start)
        table.gone = 0 if start < self.sinks else self._window(table, length) // self.page
        table.pages = [None] * table.gone
        if not self.room(self.pages_for(table, length)):
            raise OutOfState("the state pool has no room for the past of one more request")
        self.grow(table, length)
        return table

    def cut(self, table: PageTable, length: int) -> None:
        """Drop the pages beyond `length`; a page still shared is copied before it is written."""
        if length == 0:
            table.start = 0
        keep = -(-(length - table.start) // self.page)
        for page in table.pages[keep:]:
            self._drop(page)
        del table.pages[keep:]
        if length == 0:
            table.gone = 0
        self._own_last(table, length)

    def _own_last(self, table: PageTable, length: int) -> None:
        """Give a table its own copy of a partly filled last page that others share."""
        if (length - table.start) % self.page == 0 or not table.pages:
            return
        last = table.pages[-1]
        if last is None or self.counts[last] == 1:
            return
        if not self.room(1):
            raise OutOfState("the state pool has no free page to copy a shared one")
        mine = self.free.pop(0)
        self.counts[mine] = 1
        for storage in self.storage.values():
            whole = storage.view(self.pages, -1)
            whole[mine] = whole[last]
        self._drop(last)
        table.pages[-1] = mine

    def share(self, mine: PageTable, theirs: PageTable, length: int) -> None:
        """Let `theirs` hold the same pages up to `length`; a partly filled last one is copied."""
        keep = -(-(length - mine.start) // self.page)
        theirs.pages, theirs.gone, theirs.start = list(mine.pages[:keep]), mine.gone, mine.start
        for page in theirs.pages:
            if page is not None:
                self.counts[page] += 1
        self._own_last(theirs, length)

    def release(self, table: PageTable) -> None:
        """Drop everything."""
        for page in table.pages:
            self._drop(page)
        table.pages, table.gone, table.start = [], 0, 0

    def slots(self, table: PageTable, start: int, end: int) -> Tensor | slice:
        """Where positions start...end lie: a slice if they are consecutive, else indices."""
        start, end = start - table.start, end - table.start
        first, last = start // self.page, -(-end // self.page)
        pages = [p for p in table.pages[first:last] if p is not None]
        if not pages:
            return slice(0, 0)
        if all(b == a + 1 for a, b in itertools.pairwise(pages)):
            base = pages[0] * self.page + start - first * self.page
            return slice(base, base + end - start)
        index = torch.tensor(pages)[:, None] * self.page + torch.arange(self.page)
        return index.flatten()[start - first * self.page :][: end - start]

    def write(self, use: int, name: str, table: PageTable, start: int, new: Tensor) -> None:
        """Store values for positions start...start + len(new)."""
        at = self.slots(table, start, start + new.shape[0])
        self.forms[use, name].put(self.storage[use, name], at, new)

    def read(
        self, use: int, name: str, table: PageTable, past: int, end: int
    ) -> tuple[Tensor, Tensor]:
        """The values (m, *shape) that a step after `past` tokens can see, and their positions."""
        storage, form = self.storage[use, name], self.forms[use, name]
        start = table.start + self._window(table, past)
        values = form.get(storage, self.slots(table, start, end))
        positions = torch.arange(start, end, device=storage.device)
        kept = min(self.sinks, start)
        if kept > table.start:
            early = torch.arange(table.start, kept, device=storage.device)
            first = form.get(storage, self.slots(table, table.start, kept))
            values = torch.cat([first, values])
            positions = torch.cat([early, positions])
        return values, positions
