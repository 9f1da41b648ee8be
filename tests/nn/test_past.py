"""Forgetting the first part of a past, and taking a past out of the pool and back in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from keifu.core.errors import KeifuError
from keifu.nn.pages import OutOfState
from keifu.nn.past import first, forget, given, taken
from keifu.nn.state import Fixed, PerToken, RequestState, StatePool

PAGE = 4


def pool(tokens: int = 256, window: int | None = None, sinks: int = 0) -> StatePool:
    return StatePool([{"k": PerToken((1,), window, sinks)}], budget=tokens * 4, page=PAGE)


def write(p: StatePool, state: RequestState, count: int) -> None:
    """Tokens that hold their own position."""
    p.reserve(state, count)
    at = torch.arange(state.length, state.length + count, dtype=torch.float32)
    p.handles([state], [count])[0].append("k", at[:, None])
    p.advance(state, count)


def held(p: StatePool, state: RequestState) -> list[int]:
    values, at = p.handles([state], [0])[0].read("k", 0)
    assert values[:, 0].tolist() == at.tolist(), "every token is where its position says"
    return [int(x) for x in at]


def test_what_lies_before_is_gone_and_its_pages_free() -> None:
    p = pool(64)
    a = p.open()
    write(p, a, 30)
    forget(p, a, 27)
    assert (held(p, a), first(a), a.length) == ([27, 28, 29], 27, 30)
    assert p.free_tokens == 60, "three tokens take one page"
    write(p, a, 2)
    assert held(p, a) == [27, 28, 29, 30, 31]
    forget(p, a, 10)
    assert held(p, a) == [27, 28, 29, 30, 31], "what is gone already"
    forget(p, a, 99)
    assert (held(p, a), p.free_tokens) == ([], 64)
    write(p, a, 1)
    assert held(p, a) == [32]


def test_a_fork_shares_and_the_forgetful_one_does_not_disturb_it() -> None:
    p = pool(64)
    a = p.open()
    write(p, a, 10)
    b = p.fork(a)
    forget(p, b, 9)
    c = p.fork(b)
    for state in (a, b, c):
        write(p, state, 5)
    assert (held(p, a), held(p, b), held(p, c)) == ([*range(15)], [*range(9, 15)], [*range(9, 15)])
    assert p.restore(b, 12) == 12
    assert held(p, b) == [9, 10, 11]
    assert p.restore(b, 5) == 0, "what was forgotten can only be read again"
    write(p, b, 2)
    assert (held(p, b), held(p, c)) == ([0, 1], [*range(9, 15)])
    for state in (a, b, c):
        p.free(state)
    assert p.free_tokens == 64


def test_no_room_to_move_changes_nothing() -> None:
    p = pool(8)
    a = p.open()
    write(p, a, 8)
    with pytest.raises(OutOfState, match="no room"):
        forget(p, a, 2)
    assert (held(p, a), first(a)) == ([*range(8)], 0)


def test_first_tokens_that_stay_are_forgotten_as_a_whole() -> None:
    p = pool(window=4, sinks=6)
    a = p.open()
    write(p, a, 40)
    with pytest.raises(KeifuError, match="the first 6 tokens stay"):
        forget(p, a, 5)
    with pytest.raises(KeifuError, match="with a hole"):
        taken(p, a)
    forget(p, a, 6)
    assert held(p, a) == [37, 38, 39]
    assert given(p, taken(p, a)).length == 40


def test_a_recurrent_state_cannot_forget() -> None:
    p = StatePool([{"k": PerToken((1,)), "h": Fixed((2,))}], budget=4096, slots=2)
    with pytest.raises(KeifuError, match="whole or gone"):
        forget(p, p.open(), 1)


def test_a_past_of_another_shape_is_refused() -> None:
    p = pool()
    a = p.open()
    write(p, a, 3)
    past = taken(p, a)
    wide = StatePool([{"k": PerToken((2,))}], budget=4096)
    with pytest.raises(KeifuError, match=r"k of layer 0 is \(1,\)"):
        given(wide, past)
    half = StatePool([{"k": PerToken((1,))}], budget=4096, dtype=torch.bfloat16)
    with pytest.raises(KeifuError, match="bfloat16 in this model"):
        given(half, past)
    two = StatePool([{"k": PerToken((1,))}] * 2, budget=4096)
    with pytest.raises(KeifuError, match="a past of 1 entries is not of this model, which keeps 2"):
        given(two, past)
    with pytest.raises(KeifuError, match="has 3 places in the past, not 1"):
        given(pool(window=2), past)
    with pytest.raises(OutOfState):
        given(pool(tokens=2 * PAGE), taken_of(9))


def taken_of(count: int):  # type: ignore[no-untyped-def]
    p = pool()
    a = p.open()
    write(p, a, count)
    return taken(p, a)


@settings(max_examples=150, deadline=None)
@drawn(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12)), min_size=1, max_size=14),
    st.sampled_from([None, 1, 3, 4, 7]),
    st.sampled_from([0, 0, 2, 5]),
)
def test_any_order_of_operations_keeps_what_is_promised(
    moves: list[tuple[int, int]], window: int | None, sinks: int
) -> None:
    """Against a list of positions: writing, forgetting, and going out and in again."""
    p = pool(2048, window, sinks if window else 0)
    a = p.open()
    start = length = 0
    for kind, n in moves:
        if kind == 0:
            write(p, a, n)
            length += n
        elif kind == 1 and start + n <= length:
            try:
                forget(p, a, start + n)
            except KeifuError:
                assert start + n < sinks
                continue
            start += n
        elif kind == 2 and (start >= sinks or not window):
            past = taken(p, a)
            p.free(a)
            a = given(p, past)
            assert (past.start, past.length) == (start, length)
        reach = length - window + 1 if window else 0
        kept = sinks if window else 0
        expected = [at for at in range(start, length) if at >= reach or at < kept]
        assert held(p, a) == expected
    p.free(a)
    assert p.free_tokens == p.capacity
