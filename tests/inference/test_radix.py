"""The radix tree of what was read: against a naive model, over any pool, under pressure."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keifu.inference.radix import PrefixTree
from keifu.nn.pages import OutOfState
from keifu.nn.state import Entry, Fixed, PerToken, RequestState, StatePool

PAGE = 4
KINDS: dict[str, dict[str, Entry]] = {
    "whole": {"k": PerToken((1,))},
    "window": {"k": PerToken((1,), window=7)},
    "sinks": {"k": PerToken((1,), window=6, sinks=2)},
    "both": {"k": PerToken((1,)), "w": PerToken((1,), window=5)},
    "fixed": {"h": Fixed((1,))},
    "hybrid": {"k": PerToken((1,), window=9), "h": Fixed((1,))},
}


def pool_of(kind: str, pages: int = 16) -> StatePool:
    entries = [KINDS[kind]]
    fixed = sum(4 * 8 for e in KINDS[kind].values() if isinstance(e, Fixed))
    token = sum(4 for e in KINDS[kind].values() if isinstance(e, PerToken))
    return StatePool(entries, budget=fixed + token * PAGE * pages, slots=8, page=PAGE)


def read(pool: StatePool, state: RequestState, tokens: list[int]) -> None:
    """Read what is left of a text: each place holds its text so far, hashed into one number."""
    while state.length < len(tokens):
        at = state.length
        pool.reserve(state, 1)
        (handle,) = pool.handles([state], [1])
        value = torch.tensor([[name_of(tokens[: at + 1])]])
        for name, entry in pool.entries[0].items():
            if isinstance(entry, PerToken):
                handle.append(name, value)
            else:
                assert float(handle.get(name)) == (name_of(tokens[:at]) if at else 0.0)
                handle.set(name, value)
        pool.advance(state, 1)


def name_of(tokens: list[int]) -> float:
    found = 7
    for t in tokens:
        found = (found * 31 + t + 1) % 1_000_003
    return float(found)


def check(pool: StatePool, state: RequestState, tokens: list[int], kind: str) -> None:
    """All that the next token would see is what reading the text afresh leaves."""
    n = state.length
    (handle,) = pool.handles([state], [0])
    for name, entry in KINDS[kind].items():
        if isinstance(entry, Fixed):
            assert float(handle.get(name)) == (name_of(tokens[:n]) if n else 0.0)
            continue
        values, at = handle.read(name, 0)
        first = 0 if entry.window is None else max(n - entry.window + 1, 0)
        seen = [i for i in range(n) if i < entry.sinks or i >= first]
        assert at.tolist() == seen
        assert values[:, 0].tolist() == [name_of(tokens[: i + 1]) for i in seen]


def counted(pool: StatePool, tree: PrefixTree, live: list[RequestState]) -> None:
    """Every page has as many owners as it is counted for, and is free where it has none."""
    for g, group in enumerate(pool.groups):
        kept = Counter(p for edge in tree for p in edge.pages[g] if p is not None)
        owners = kept + Counter(p for s in live for p in s.tables[g].pages if p is not None)
        assert group.kept == [kept[p] for p in range(group.pages)]
        assert group.counts == [owners[p] for p in range(group.pages)]
        assert group.free == [p for p in range(group.pages) if not owners[p]]
        assert len(set(group.free)) == len(group.free)
        mine = [p for p in range(group.pages) if owners[p] == kept[p]]
        assert group.idle == len(mine)


texts = st.lists(st.integers(0, 2), min_size=1, max_size=24)
moves = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), texts), max_size=24)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(moves)
def test_any_sequence_of_requests_finds_what_it_would_compute(
    kind: str, moves: list[tuple[int, int, list[int]]]
) -> None:
    """Opened, filled, read, forked, stored, freed, evicted in any order, in a small pool."""
    pool = pool_of(kind)
    tree = PrefixTree(pool, snapshots=20)
    live: list[tuple[RequestState, list[int]]] = []
    for what, which, text in moves:
        try:
            if what in (0, 1) and len(live) < 5:
                state = pool.open()
                live.append((state, text))
                tree.fill(state, "a" if which < 7 else "b", text[:-1])
                check(pool, state, text, kind)
                read(pool, state, text)
            elif what == 2 and live:
                state, mine = live[which % len(live)]
                mine += text[:5]
                read(pool, state, mine)
            elif what == 3 and live:
                state, mine = live[which % len(live)]
                tree.store(state, "a", mine)
            elif what == 4 and live:
                state, mine = live.pop(which % len(live))
                tree.store(state, "a" if which < 7 else "b", mine)
                pool.free(state)
            elif what == 5 and live and len(live) < 5:
                state, mine = live[which % len(live)]
                live.append((pool.fork(state), list(mine)))
            elif which == 0:
                tree.evict()
        except OutOfState:
            pass
        counted(pool, tree, [s for s, _ in live])
        for state, mine in live:
            check(pool, state, mine, kind)
    for state, _ in live:
        pool.free(state)
    assert pool.free_tokens == pool.capacity, "what is only kept can be had"
    tree.clear()
    assert [len(g.free) for g in pool.groups] == [g.pages for g in pool.groups]
    assert tree.size == 0


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), texts), max_size=12), texts)
def test_a_lookup_is_the_longest_common_prefix(
    stored: list[tuple[int, list[int]]], asked: list[int]
) -> None:
    """Of all texts under the same key, token by token."""
    pool = pool_of("whole", pages=200)
    tree = PrefixTree(pool)
    for key, text in stored:
        state = pool.open()
        tree.fill(state, key, text)
        read(pool, state, text)
        tree.store(state, key, text)
        pool.free(state)
    for key in (0, 1):
        best = max((common(text, asked) for k, text in stored if k == key), default=0)
        assert tree.common(key, asked) == best
        state = pool.open()
        assert tree.fill(state, key, asked) == best == state.length
        check(pool, state, asked, "whole")
        pool.free(state)
    assert sum(len(edge.tokens) for edge in tree) == tree.size
    for key in (0, 1):
        nodes = {tuple(t[:n]) for k, t in stored if k == key for n in range(1, len(t) + 1)}
        mine = sum(len(e.tokens) for e in tree if tree._used[e] == key)
        assert mine == len(nodes), "each token of a shared beginning is kept once"


def common(a: list[int], b: list[int]) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def told(pool: StatePool, tree: PrefixTree, text: list[int]) -> None:
    state = pool.open()
    tree.fill(state, "", text)
    read(pool, state, text)
    tree.store(state, "", text)
    pool.free(state)


def test_the_least_used_text_goes_first_and_only_as_far_as_needed() -> None:
    pool = pool_of("whole", pages=8)
    tree = PrefixTree(pool)
    first, second = [0] * 8 + [1] * 8, [0] * 8 + [2] * 8
    told(pool, tree, first)
    told(pool, tree, second)
    assert len(pool.groups[0].free) == 2
    tree.fill(state := pool.open(), "", first)
    pool.free(state)
    told(pool, tree, [5] * 12)
    assert tree.common("", second) == 8, "of the two, the one that was not used since"
    assert tree.common("", first) == 16
    state = pool.open()
    tree.fill(state, "", first)
    other = pool.open()
    with pytest.raises(OutOfState):
        pool.reserve(other, 20)
    pool.reserve(other, 16)
    check(pool, state, first, "whole")
    pool.free(state)
    pool.free(other)
    assert pool.free_tokens == pool.capacity


def test_recurrent_state_is_kept_within_bytes() -> None:
    pool = pool_of("fixed")
    tree = PrefixTree(pool, snapshots=12)
    for t in range(9):
        told(pool, tree, [t] * 5)
    assert [e.fixed is not None for e in tree] == [True] * 3
    assert [tree.common("", [t]) for t in range(9)] == [0] * 6 + [1] * 3
    assert tree.size == 15
    bounded = PrefixTree(pool, tokens=10)
    for t in range(9):
        told(pool, bounded, [t] * 5)
    assert bounded.size == 10
