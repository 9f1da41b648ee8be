"""What a model remembers while it generates: declared by mixers, kept in one pool.

A mixer declares entries; a *use* of a block (a layer) has its own. `StatePool` serves every use
and every request from one byte budget: per-token entries in pages, fixed ones in slots, what is
made of a memory in pages that forks share. The scheduler sees `cost`, `reserve`, `fork`, `free`
and `restore`; a mixer sees a `Handle`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.nn.forms import Form, form
from keifu.nn.handles import UseHandle, View
from keifu.nn.memory import Held, MemoryGroup
from keifu.nn.pages import OutOfState, PageGroup, PageTable, most_held


@dataclass(frozen=True)
class PerToken:
    """One value of `shape` a token, kept in pages; beyond `window` only the `sinks` first stay."""

    shape: tuple[int, ...]
    window: int | None = None
    sinks: int = 0
    reading: str | None = None
    """How attention reads heads (heads, width), so that they may be codes: "keys" or "values"."""

    def form(self, dtype: torch.dtype) -> Form:
        """How it is kept in a pool of this type."""
        return form(self.shape, dtype, self.reading)


@dataclass(frozen=True)
class Fixed:
    """One value of `shape` a request: a recurrence's state, a convolution's tail; starts at 0."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Memory:
    """One value of `shape` a place of the memory `source` (an encoder's output), written once."""

    shape: tuple[int, ...]
    source: str = "encoder"
    shared: str | None = None
    """A name under which all uses keep one value; None: each use has its own."""

    def form(self, dtype: torch.dtype) -> Form:
        """How it is kept in a pool of this type."""
        return form(self.shape, dtype)


Entry = PerToken | Fixed | Memory
Key = tuple[int, str]
"""A use and the name of what it keeps."""
EVERY = -1
"""The use of what all uses share."""


def stored(entries: Sequence[Mapping[str, Entry]]) -> dict[Key, Entry]:
    """What is kept of all uses' entries, each once.

    Raises:
        ValueError: two entries of one shared name are not the same.
    """
    found: dict[Key, Entry] = {}
    for use, declared in enumerate(entries):
        for name, entry in declared.items():
            key = _key(use, name, entry)
            if found.setdefault(key, entry) != entry:
                raise ValueError(f"{entry} and {found[key]} cannot be one: their uses share them")
    return found


def _key(use: int, name: str, entry: Entry) -> Key:
    if isinstance(entry, Memory) and entry.shared is not None:
        return EVERY, f"{entry.source}.{entry.shared}"
    return use, name


def state_bytes(entries: Sequence[Mapping[str, Entry]], dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that one request takes, and bytes that each of its tokens takes, over all uses.

    A place of a memory counts as a token: the pool holds as many of the one as of the other.
    """
    fixed = token = 0
    for entry in stored(entries).values():
        if isinstance(entry, Fixed):
            fixed += math.prod(entry.shape) * entry.dtype.itemsize
        else:
            token += entry.form(dtype).bytes
    return fixed, token


def places(entries: Sequence[Mapping[str, Entry]], length: int, step: int, page: int = 32) -> int:
    """Places, in whole pages, that a request of `length` takes in each group, `step` at a time."""
    found = [length + page]
    kept = [e for e in stored(entries).values() if not isinstance(e, Fixed)]
    if all(isinstance(e, PerToken) for e in kept):
        found = [
            most_held(length, e.window, e.sinks, step, page)
            for e in kept
            if isinstance(e, PerToken)
        ]
    return -(-max(found, default=page) // page) * page


class Handle(Protocol):
    """One use's state for the rows of a step, written in place."""

    def append(self, name: str, new: Tensor) -> None:
        """Store a per-token entry for the step's tokens: new is (tokens, *shape)."""

    def read(self, name: str, row: int) -> tuple[Tensor, Tensor]:
        """What a row holds: values (m, *shape) and their positions (m,), oldest first."""

    def views(self, *names: str) -> Iterable[View]:
        """What all rows hold of some entries that are kept alike, rows that read alike together."""

    def get(self, name: str) -> Tensor:
        """A fixed entry of all rows: (R, *shape)."""

    def set(self, name: str, value: Tensor) -> None:
        """Replace a fixed entry of all rows."""

    def memory(self, name: str, row: int, make: Callable[[], Tensor]) -> Tensor:
        """A memory entry of a row (m, *shape): made by the first step that asks, then kept."""


@dataclass(eq=False)
class RequestState:
    """What one request holds: a page table a group, a slot, memories, how many tokens are in."""

    tables: list[PageTable]
    slot: int | None
    length: int = 0
    snapshots: dict[int, list[Tensor]] = field(default_factory=dict)
    memories: dict[str, Held] = field(default_factory=dict)
    pool: object = None
    """The pool it was opened in: no other can read it."""


class StatePool:
    """State of all requests and all uses, from one byte budget.

    Args:
        entries: for each use, the entries its block declares.
        budget: bytes that pages and slots may take together.
        slots: most requests at once where some entry is fixed.
        dtype: of per-token entries; fixed ones name their own. int8: keys and values are codes
            with a scale a head, what else there is bfloat16.
        page: tokens in a page.
        places: of memories, all requests together; None: as many as tokens.
    """

    def __init__(
        self,
        entries: Sequence[Mapping[str, Entry]],
        *,
        budget: int,
        slots: int = 64,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        page: int = 32,
        places: int | None = None,
    ) -> None:
        self.entries, self.dtype, self.page = list(entries), dtype, page
        self.device = torch.device(device)
        self.fixed: dict[Key, Tensor] = {}
        groups: dict[tuple[int | None, int], list[tuple[int, str, PerToken]]] = {}
        sources: dict[str, list[tuple[int, str, Memory]]] = {}
        for (use, name), entry in stored(self.entries).items():
            if isinstance(entry, PerToken):
                groups.setdefault((entry.window, entry.sinks), []).append((use, name, entry))
            elif isinstance(entry, Memory):
                sources.setdefault(entry.source, []).append((use, name, entry))
            else:
                self.fixed[use, name] = torch.zeros(
                    slots, *entry.shape, dtype=entry.dtype, device=self.device
                )
        self._free_slots = list(range(slots - 1, -1, -1)) if self.fixed else []
        left = budget - sum(t.nbytes for t in self.fixed.values())
        token, place = (
            sum(map(self._token_bytes, found.values())) * page for found in (groups, sources)
        )
        held = -(-(places or 0) // page)
        left -= held * place
        pages = max(left, 0) // max(token + (place if places is None else 0), 1)
        held = pages if places is None else held
        if left < 0 or (token and pages < 1) or (place and held < 1):
            what = f"{slots} requests" + (f" and {places} places of memory" if places else "")
            what = what if left < 0 else f"one page of {page} tokens"
            raise KeifuError(
                f"a state budget of {budget} bytes does not hold {what}: raise --max-memory"
            )
        self.groups = [
            PageGroup(members, window, sinks, pages, page, dtype, self.device)
            for (window, sinks), members in groups.items()
        ]
        self.memories = {
            source: MemoryGroup(PageGroup(members, None, 0, held, page, dtype, self.device))
            for source, members in sources.items()
        }
        self._where = {
            (use, name): g for g, group in enumerate(self.groups) for use, name in group.storage
        }

    def _token_bytes(self, members: Sequence[tuple[int, str, PerToken | Memory]]) -> int:
        return sum(e.form(self.dtype).bytes for _, _, e in members)

    def group_of(self, use: int, name: str) -> int:
        """Which group of pages holds a per-token entry of a use."""
        return self._where[use, name]

    def memory_of(self, use: int, name: str) -> tuple[str, Key]:
        """The source of a memory's entry of a use, and under what it is kept."""
        entry = self.entries[use][name]
        assert isinstance(entry, Memory)
        return entry.source, _key(use, name, entry)

    @property
    def token_bytes(self) -> int:
        """Bytes that one more token of one request takes."""
        return sum(g.token_bytes for g in self.groups)

    @property
    def capacity(self) -> int:
        """Tokens the pool can hold, all requests together."""
        return min((g.pages * self.page for g in self.groups), default=2**62)

    def reach(self, step: int) -> int:
        """Tokens that one request may grow to, `step` at a time, with the pool to itself."""
        return min((g.reach(step) for g in self.groups), default=2**62)

    @property
    def free_tokens(self) -> int:
        """Tokens that can still be reserved (in whole pages), once what is kept gives way."""
        return min((g.idle * self.page for g in self.groups), default=2**62)

    @property
    def used(self) -> float:
        """The fullest part of the budget, 0 to 1, less what is kept but gives way."""
        groups = [*self.groups, *(m.pages for m in self.memories.values())]
        parts = [1 - group.idle / group.pages for group in groups]
        slots = next((tensor.shape[0] for tensor in self.fixed.values()), 0)
        if slots:
            parts.append(1 - len(self._free_slots) / slots)
        return max(parts, default=0.0)

    def room(self) -> dict[str, int]:
        """How long a memory of each source may be, with the pool to itself."""
        return {source: g.pages.pages * self.page for source, g in self.memories.items()}

    def open(self, memories: Mapping[str, int] | None = None) -> RequestState:
        """A new, empty request, with places for memories of these lengths, by source.

        Raises:
            OutOfState: with nothing taken.
        """
        state = RequestState([PageTable() for _ in self.groups], None, pool=self)
        try:
            for source, length in (memories or {}).items():
                state.memories[source] = self.memories[source].open(length)
            if self.fixed and not self._free_slots:
                raise OutOfState("no free state slot: lower --parallel or wait")
        except OutOfState:
            self.free(state)
            raise
        if self.fixed:
            state.slot = self._free_slots.pop()
            for tensor in self.fixed.values():
                tensor[state.slot] = 0
        return state

    def held(self, state: RequestState) -> int:
        """Bytes that a request has taken: its slot and its pages (memories are not its own)."""
        taken = sum(t[0].nbytes for t in self.fixed.values())
        for group, table in zip(self.groups, state.tables, strict=True):
            pages = sum(page is not None for page in table.pages)
            taken += pages * group.page * group.token_bytes
        return taken

    def check(self, memories: Mapping[str, int]) -> None:
        """Refuse memories (by source, their lengths) that no request could be opened with."""
        if set(memories) != set(self.memories):
            wanted, given = (", ".join(sorted(m)) or "none" for m in (self.memories, memories))
            raise KeifuError(f"the model reads the memories {wanted}; given were {given}")
        for source, length in memories.items():
            most = self.room()[source]
            if length > most:
                raise KeifuError(
                    f"the memory {source!r} is {length} long and the state budget holds {most}: "
                    "shorten the source or raise --max-memory"
                )

    def cost(self, state: RequestState, tokens: int) -> int:
        """Pages that growing a request by `tokens` takes (the largest group's need)."""
        needs = (
            group.pages_for(table, state.length + tokens)
            for group, table in zip(self.groups, state.tables, strict=True)
        )
        return max(needs, default=0)

    def reserve(self, state: RequestState, tokens: int) -> None:
        """Make room for `tokens` more, or raise OutOfState with nothing taken."""
        end = state.length + tokens
        pairs = list(zip(self.groups, state.tables, strict=True))
        if not all(group.room(group.pages_for(table, end)) for group, table in pairs):
            raise OutOfState(f"the state pool has no room for {tokens} more tokens")
        for group, table in pairs:
            group.grow(table, end)

    def advance(self, state: RequestState, tokens: int, *, undoable: bool = False) -> None:
        """Count `tokens` as written; unless undoable, let go of what no window reaches."""
        state.length += tokens
        if undoable:
            return
        for group, table in zip(self.groups, state.tables, strict=True):
            group.trim(table, state.length)

    def fork(self, state: RequestState) -> RequestState:
        """A second request with the same past and memories; a partly filled page is copied."""
        other = self.open()
        other.length = state.length
        other.snapshots = dict(state.snapshots)
        other.memories = {s: self.memories[s].share(held) for s, held in state.memories.items()}
        try:
            for group, mine, theirs in zip(self.groups, state.tables, other.tables, strict=True):
                group.share(mine, theirs, state.length)
        except OutOfState:
            self.free(other)
            raise
        for tensor in self.fixed.values():
            tensor[other.slot] = tensor[state.slot]
        return other

    def free(self, state: RequestState) -> None:
        """Give everything back."""
        for group, table in zip(self.groups, state.tables, strict=True):
            group.release(table)
        for source, held in state.memories.items():
            self.memories[source].drop(held)
        state.memories.clear()
        if state.slot is not None:
            self._free_slots.append(state.slot)
            state.slot = None
        state.snapshots.clear()

    def snapshot(self, state: RequestState) -> None:
        """Remember the fixed entries at this length, so that `restore` can come back here."""
        if self.fixed:
            state.snapshots[state.length] = [t[state.slot].clone() for t in self.fixed.values()]

    def restore(self, state: RequestState, length: int) -> int:
        """Go back to at most `length` tokens; returns m <= length, the caller recomputes the rest.

        Per-token entries restore anywhere that their window still holds; fixed ones at snapshots.
        """
        for group, table in zip(self.groups, state.tables, strict=True):
            if not group.holds(table, length):
                length = 0
        if self.fixed:
            kept = [n for n in state.snapshots if n <= length]
            length = max(kept, default=0)
            for i, tensor in enumerate(self.fixed.values()):
                tensor[state.slot] = state.snapshots[length][i] if kept else 0
            state.snapshots = {n: s for n, s in state.snapshots.items() if n <= length}
        for group, table in zip(self.groups, state.tables, strict=True):
            group.cut(table, length)
        state.length = length
        return length

    def handles(self, states: Sequence[RequestState], lengths: Sequence[int]) -> list[Handle]:
        """One handle a use for a step of `lengths` new tokens a request, already reserved.

        Raises:
            KeifuError: a state was opened in another pool, for another model or budget.
        """
        if any(state.pool is not self for state in states):
            raise KeifuError("a request's state is of another model: open it in this model's pool")
        return [UseHandle(self, use, states, lengths) for use in range(len(self.entries))]
