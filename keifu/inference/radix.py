"""A radix tree of what was read: texts that begin alike share their state until room is needed.

An edge of the tree is a row of tokens with the pages that hold their state, shared by reference
count with whoever reads them (Zheng et al. 2024, SGLang, section 3); recurrent state, which is
not held token by token, is kept at the ends of edges. Pages are the pool's: it asks for them back
when it has no free ones, and the edge that nobody has walked for longest goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from keifu.nn.pages import OutOfState, PageGroup
from keifu.nn.state import RequestState, StatePool

TOKENS = 1 << 21
"""Most tokens of a tree: what names state takes room too."""
SNAPSHOTS = 64 << 20
"""Most bytes of recurrent state that a tree keeps; one state is always kept."""

Ints = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(eq=False)
class Edge:
    """Tokens after those of the edges above it, and the state of their positions."""

    above: Edge | None
    start: int
    """The position of its first token."""
    tokens: Ints
    pages: list[list[int | None]]
    """In each group, those that hold its positions; the first may begin with positions above."""
    fixed: list[Tensor] | None = None
    """Recurrent state after its last token."""
    below: dict[int, Edge] = field(default_factory=dict)
    """By their first tokens."""

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.start + len(self.tokens)


class PrefixTree:
    """Texts that were read, by key, over one pool.

    Every edge is used after those below it, so the one that was not used for longest is a leaf.
    """

    def __init__(
        self, pool: StatePool, *, tokens: int = TOKENS, snapshots: int = SNAPSHOTS
    ) -> None:
        self.pool, self._tokens, self._snapshots = pool, tokens, snapshots
        self._roots: dict[Hashable, Edge] = {}
        self._used: OrderedDict[Edge, Hashable] = OrderedDict()
        self._fixed: OrderedDict[Edge, int] = OrderedDict()
        self.size = 0
        """Tokens of all edges."""
        for group in pool.groups:
            group.reclaim = self.evict

    def __iter__(self) -> Iterator[Edge]:
        return iter(self._used)

    def common(self, key: Hashable, tokens: Sequence[int]) -> int:
        """How many of the first tokens are in the tree, whether or not their state is whole."""
        return self._walk(key, np.asarray(tokens, dtype=np.int32))[1]

    def fill(self, state: RequestState, key: Hashable, tokens: Sequence[int], by: int = 1) -> int:
        """Give a new request the state of its first tokens, as far as the tree has it.

        Args:
            by: the state ends at a multiple of this.

        Returns:
            How many tokens it need not read.
        """
        path, length = self._walk(key, np.asarray(tokens, dtype=np.int32))
        length, tables = self._usable(path, length, by)
        if not length:
            return 0
        self._touch(path)
        for group, table, pages in zip(self.pool.groups, state.tables, tables, strict=True):
            group.take(table, pages)
        try:
            for group, table in zip(self.pool.groups, state.tables, strict=True):
                group.own(table, length)
        except OutOfState:
            for group, table in zip(self.pool.groups, state.tables, strict=True):
                group.release(table)
            return 0
        if self.pool.fixed:
            kept = next(edge.fixed for edge in path if edge.end == length)
            assert kept is not None
            for tensor, value in zip(self.pool.fixed.values(), kept, strict=True):
                tensor[state.slot] = value
        state.length = length
        return length

    def store(
        self, state: RequestState, key: Hashable, tokens: Sequence[int], length: int | None = None
    ) -> None:
        """Keep what a request has read, or the first `length` tokens of it."""
        n = state.length if length is None else min(length, state.length)
        if not n:
            return
        ids = np.asarray(tokens[:n], dtype=np.int32)
        path, known = self._walk(key, ids)
        whole = bool(self.pool.fixed) and n == state.length
        holes = any(group.window is not None for group in self.pool.groups)
        if path and path[-1].end > known and (known < n or whole or holes):
            path[-1] = self._split(path[-1], known)
        tables = [table.pages[: -(-n // self.pool.page)] for table in state.tables]
        if known < n:
            above = path[-1] if path else self._roots.setdefault(key, self._root())
            edge = Edge(above, known, ids[known:], self._cut(tables, known, n))
            self._link(edge, key)
            path.append(edge)
        self._touch(path)
        if holes:
            for edge in path:
                self._mend(edge, tables)
        if whole:
            self._snapshot(path[-1], state)
        while self.size > self._tokens:
            self.evict()

    def evict(self) -> bool:
        """Give the pages of the edge back that was not used for longest; False if none is left."""
        if not self._used:
            return False
        self._remove(next(iter(self._used)))
        return True

    def clear(self) -> None:
        """Give everything back."""
        while self.evict():
            pass

    def _root(self) -> Edge:
        return Edge(None, 0, np.zeros(0, dtype=np.int32), [[] for _ in self.pool.groups])

    def _walk(self, key: Hashable, ids: Ints) -> tuple[list[Edge], int]:
        """The edges that begin like the tokens, and how many tokens they have in common."""
        path: list[Edge] = []
        edge, at = self._roots.get(key), 0
        while edge is not None and at < len(ids):
            edge = edge.below.get(int(ids[at]))
            if edge is None:
                break
            n = min(len(edge.tokens), len(ids) - at)
            other = np.flatnonzero(edge.tokens[:n] != ids[at : at + n])
            path.append(edge)
            at += int(other[0]) if len(other) else n
            if at < edge.end:
                break
        return path, at

    def _usable(self, path: list[Edge], length: int, by: int) -> tuple[int, list[list[int | None]]]:
        """The longest past that a request can go on from, and its pages in each group."""
        ends = [edge.end for edge in path if edge.end < length]
        for most in [length, *reversed(ends)]:
            n = most - most % by
            if self.pool.fixed and not any(e.end == n and e.fixed is not None for e in path):
                continue
            tables = [self._pages(path, g, n) for g in range(len(self.pool.groups))]
            pairs = zip(self.pool.groups, tables, strict=True)
            if n and all(pages[i] is not None for g, pages in pairs for i in g.needed(n)):
                return n, tables
        return 0, []

    def _pages(self, path: list[Edge], group: int, length: int) -> list[int | None]:
        """A page that two edges reach into is the lower one's: it holds the upper's part too."""
        found: list[int | None] = []
        for edge in path:
            if edge.start < length:
                del found[edge.start // self.pool.page :]
                found += edge.pages[group]
        return found[: -(-length // self.pool.page)]

    def _cut(
        self, tables: Sequence[Sequence[int | None]], start: int, end: int
    ) -> list[list[int | None]]:
        page = self.pool.page
        return [list(pages[start // page : -(-end // page)]) for pages in tables]

    def _groups(self, pages: Sequence[list[int | None]]) -> Iterator[tuple[PageGroup, Any]]:
        return zip(self.pool.groups, pages, strict=True)

    def _link(self, edge: Edge, key: Hashable) -> None:
        assert edge.above is not None
        edge.above.below[int(edge.tokens[0])] = edge
        self._used[edge] = key
        self.size += len(edge.tokens)
        for group, pages in self._groups(edge.pages):
            group.keep(pages)

    def _remove(self, edge: Edge) -> None:
        key, above = self._used.pop(edge), edge.above
        assert above is not None
        self._fixed.pop(edge, None)
        self.size -= len(edge.tokens)
        for group, pages in self._groups(edge.pages):
            group.part(pages)
        del above.below[int(edge.tokens[0])]
        if above.above is None and not above.below:
            del self._roots[key]

    def _split(self, edge: Edge, at: int) -> Edge:
        """Two edges for one; returns the upper."""
        assert edge.above is not None
        page, n = self.pool.page, at - edge.start
        before = edge.start // page
        upper = Edge(
            edge.above,
            edge.start,
            edge.tokens[:n],
            [pages[: -(-at // page) - before] for pages in edge.pages],
        )
        self._link(upper, self._used[edge])
        self.size -= n
        edge.above, edge.start, edge.tokens = upper, at, edge.tokens[n:]
        for group, pages in self._groups(edge.pages):
            group.part(pages[: at // page - before])
        edge.pages = [pages[at // page - before :] for pages in edge.pages]
        upper.below[int(edge.tokens[0])] = edge
        return upper

    def _touch(self, path: Sequence[Edge]) -> None:
        for edge in reversed(path):
            self._used.move_to_end(edge)
            if edge in self._fixed:
                self._fixed.move_to_end(edge)

    def _mend(self, edge: Edge, tables: Sequence[Sequence[int | None]]) -> None:
        """Pages that a window had let go before the edge was stored, if this request has them."""
        found = self._cut(tables, edge.start, edge.end)
        for (group, pages), theirs in zip(self._groups(edge.pages), found, strict=True):
            for i, page in enumerate(theirs):
                if pages[i] is None and page is not None:
                    group.keep([page])
                    pages[i] = page

    def _snapshot(self, edge: Edge, state: RequestState) -> None:
        """Keep the recurrent state at an edge's end; the ones not used for longest make room."""
        if edge.fixed is None:
            edge.fixed = [t[state.slot].clone() for t in self.pool.fixed.values()]
            self._fixed[edge] = sum(t.nbytes for t in edge.fixed)
        while sum(self._fixed.values()) > self._snapshots and len(self._fixed) > 1:
            old, _ = self._fixed.popitem(last=False)
            old.fixed = None
            while not self.pool.groups and not old.below and old.fixed is None and old.above:
                self._remove(old)
                old = old.above
