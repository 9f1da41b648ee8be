"""A request's past: forgetting the first part of it, and taking it out of a pool and back in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.nn.state import RequestState, StatePool


@dataclass(frozen=True, kw_only=True, eq=False)
class Past:
    """What a request holds of each token, as plain tensors. Positions are those it was read at."""

    length: int
    """Tokens read."""
    start: int
    """The first position that is not forgotten."""
    values: Mapping[tuple[int, str], Tensor]
    """By use and entry (m, *shape): the last m positions before `length` (a window may hold less
    than there is from `start` on)."""

    @property
    def tokens(self) -> int:
        """Positions that are held."""
        return self.length - self.start

    @property
    def bytes(self) -> int:
        """What the tensors take."""
        return sum(t.nbytes for t in self.values.values())


def forget(pool: StatePool, state: RequestState, before: int) -> None:
    """Let a request forget what lies before a position; no later token sees it, positions stay.

    Raises:
        KeifuError: an entry is fixed (recurrent), and so not divided by position.
        OutOfState: what is kept moves to pages of its own, and there are none; it may be asked
            for again.
    """
    _check(pool)
    for group, table in zip(pool.groups, state.tables, strict=True):
        group.forget(table, before, state.length)


def taken(pool: StatePool, state: RequestState) -> Past:
    """A copy of what a request holds.

    Raises:
        KeifuError: it has entries that are not per token, or a hole in its past (first tokens that
            stay, and a window).
    """
    _check(pool)
    values: dict[tuple[int, str], Tensor] = {}
    for group, table in zip(pool.groups, state.tables, strict=True):
        for use, name in group.storage:
            value, at = group.read(use, name, table, state.length, state.length)
            if len(at) and int(at[-1] - at[0]) + 1 != len(at):
                raise KeifuError("a past with a hole between first tokens and a window cannot be "
                                 "taken out: forget the first tokens")  # fmt: skip
            values[use, name] = value.clone()
    return Past(length=state.length, start=first(state), values=values)


def given(pool: StatePool, past: Past) -> RequestState:
    """A request that goes on where a past ends.

    Raises:
        KeifuError: it does not fit this model's state.
        OutOfState: with nothing taken.
    """
    _check(pool)
    where = {key: group for group in pool.groups for key in group.storage}
    if where.keys() != past.values.keys():
        raise KeifuError(f"a past of {len(past.values)} entries is not of this model, which keeps "
                         f"{len(where)}")  # fmt: skip
    for (use, name), value in past.values.items():
        form = where[use, name].forms[use, name]
        if tuple(value.shape[1:]) != form.shape or value.dtype != form.dtype:
            raise KeifuError(
                f"{name} of layer {use} is {tuple(value.shape[1:])} {value.dtype} in the past, and "
                f"{form.shape} {form.dtype} in this model"
            )
        held = min(past.tokens, (where[use, name].window or 2**62) - 1)
        if value.shape[0] != held:
            raise KeifuError(f"{name} of layer {use} has {value.shape[0]} places in the past, not "
                             f"{held}")  # fmt: skip
    state = pool.open()
    try:
        for i, group in enumerate(pool.groups):
            state.tables[i] = group.opened(past.start, past.length)
    except KeifuError:
        pool.free(state)
        raise
    state.length = past.length
    for i, group in enumerate(pool.groups):
        for use, name in group.storage:
            value = past.values[use, name].to(pool.device)
            group.write(use, name, state.tables[i], past.length - len(value), value)
    return state


def first(state: RequestState) -> int:
    """The first position that a request has not forgotten."""
    return min((table.start for table in state.tables), default=0)


def _check(pool: StatePool) -> None:
    if pool.fixed or pool.memories:
        raise KeifuError(
            "a past that is not held token by token (a recurrence's, a memory's) is whole or gone"
        )
