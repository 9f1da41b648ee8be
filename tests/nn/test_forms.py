"""Keys and values in 8 bits: what they keep, what they take, and where they move."""

from __future__ import annotations

import math

import pytest
import torch

from keifu.core.errors import KeifuError
from keifu.nn.forms import Coded, Plain, form
from keifu.nn.past import given, taken
from keifu.nn.state import Entry, PerToken, StatePool, state_bytes

CPU = torch.device("cpu")


def entries(window: int | None = None, sinks: int = 0) -> list[dict[str, Entry]]:
    """Two uses: keys and values of three heads of 20, and something that is no head."""
    kinds = {"k": ("keys", (3, 20)), "v": ("values", (3, 20)), "h": (None, (5,))}
    return [
        {n: PerToken(shape, window, sinks, reading) for n, (reading, shape) in kinds.items()}
        for _ in range(2)
    ]


@pytest.mark.parametrize("width", [4, 20, 64])
@pytest.mark.parametrize("reading", ["keys", "values"])
def test_codes_are_off_by_half_a_step(reading: str, width: int) -> None:
    kept, x = form((3, width), torch.int8, reading), torch.randn(40, 3, width)
    x[7, 1] = 0
    storage = kept.empty(64, CPU)
    storage.fill_(255)
    at = torch.randperm(64)[:40]
    kept.put(storage, at, x)
    found = kept.get(storage, at).float()
    step = x.abs().amax(-1, keepdim=True) / 127
    assert found.shape == x.shape
    assert ((found - x).abs() <= step / 2 + x.abs() * 2**-8).all()
    assert (found[7, 1] == 0).all()


@pytest.mark.parametrize("reading", ["keys", "values"])
def test_places_that_follow_and_places_that_move(reading: str) -> None:
    kept, x = Coded((2, 16), reading), torch.randn(30, 2, 16)
    storage = kept.empty(96, CPU)
    kept.put(storage, slice(9, 39), x)
    torch.testing.assert_close(
        kept.get(storage, slice(20, 24)), kept.get(storage, slice(9, 39))[11:15]
    )
    kept.move(storage, slice(9, 39), torch.arange(95, 65, -1))
    assert torch.equal(kept.get(storage, torch.arange(95, 65, -1)), kept.get(storage, slice(9, 39)))


def test_what_is_not_a_number_stays_none() -> None:
    kept, x = Coded((1, 16), "keys"), torch.ones(2, 1, 16)
    x[0, 0, 3], x[1, 0, 2] = math.nan, math.inf
    storage = kept.empty(16, CPU)
    kept.put(storage, slice(0, 2), x)
    assert not kept.get(storage, slice(0, 2)).isfinite().any()


def test_bytes_as_declared_and_what_is_no_head_in_bfloat16() -> None:
    fixed, token = state_bytes(entries(), torch.int8)
    assert (fixed, token) == (0, 2 * (2 * 3 * (32 + 4) + 5 * 2))
    pool = StatePool(entries(), budget=token * 32 * 4, dtype=torch.int8)
    held = [s for g in pool.groups for s in g.storage.values()]
    assert sum(s.nbytes for s in held) == token * 32 * 4 == pool.token_bytes * pool.capacity
    assert pool.groups[0].forms[0, "h"] == Plain((5,), torch.bfloat16)


def written(pool: StatePool, length: int) -> tuple[object, torch.Tensor]:
    """A request of random values, and its first keys as they are read."""
    state = pool.open()
    pool.reserve(state, length)
    for handle in pool.handles([state], [length]):
        for name, width in (("k", (3, 20)), ("v", (3, 20)), ("h", (5,))):
            handle.append(name, torch.randn(length, *width))
    pool.advance(state, length)
    return state, read(pool, state)


def read(pool: StatePool, state: object) -> torch.Tensor:
    """All of the first use's keys and values."""
    handle = pool.handles([state], [0])[0]  # type: ignore[list-item]
    return torch.cat([handle.read(name, 0)[0] for name in ("k", "v")], -1)


def test_forks_write_beside_each_other() -> None:
    pool = StatePool(entries(), budget=1 << 20, dtype=torch.int8)
    state, before = written(pool, 41)
    other = pool.fork(state)  # type: ignore[arg-type]
    assert torch.equal(read(pool, other), before)
    pool.reserve(other, 1)
    for handle in pool.handles([other], [1]):
        for name, width in (("k", (3, 20)), ("v", (3, 20)), ("h", (5,))):
            handle.append(name, torch.full((1, *width), 9.0))
    pool.advance(other, 1)
    assert torch.equal(read(pool, state), before)
    assert torch.equal(read(pool, other)[:41], before)
    assert pool.restore(other, 40) == 40
    assert torch.equal(read(pool, other), before[:40])


def test_a_past_goes_out_and_in() -> None:
    """Codes of codes are the same, but for what bfloat16 takes between them."""
    pool = StatePool(entries(), budget=1 << 20, dtype=torch.int8)
    state, before = written(pool, 41)
    again = given(pool, taken(pool, state))  # type: ignore[arg-type]
    step = before.abs().amax(-1, keepdim=True) / 127
    assert ((read(pool, again) - before).abs() <= 1.5 * step).all()


def test_sinks_and_a_window() -> None:
    pool = StatePool(entries(window=8, sinks=2), budget=1 << 20, dtype=torch.int8)
    whole = StatePool(entries(), budget=1 << 20, dtype=torch.int8)
    torch.manual_seed(1)
    state, _ = written(pool, 70)
    torch.manual_seed(1)
    _, everything = written(whole, 70)
    values, at = pool.handles([state], [0])[0].read("k", 0)  # type: ignore[list-item]
    assert at.tolist() == [0, 1, *range(63, 70)]
    assert torch.equal(values, everything[at][..., :20])


def test_pages_hold_whole_tiles() -> None:
    with pytest.raises(ValueError, match="tiles of 16"):
        StatePool(entries(), budget=1 << 16, page=8, dtype=torch.int8)
    with pytest.raises(KeifuError, match="state budget"):
        StatePool(entries(), budget=100, dtype=torch.int8)
