"""Retrieving cross-attention against a slow float64 one; chunks against a loop by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from keifu.core.errors import ConfigError, KeifuError
from keifu.nn import retrieved
from keifu.nn.attention import CrossAttention
from keifu.nn.chunks import TOGETHER, Chunk, Overlap, passes
from keifu.nn.retrieved import Retrieved, nearest, nearest_sums
from keifu.nn.state import StatePool
from keifu.nn.step import Step, fresh_step

WIDTH, HEADS, HEAD, MEMORY = 10, 3, 4, 7
LENGTHS, HELD = (5, 1, 3), (40, 6, 23)


def part(places: int, bias: bool = True) -> torch.nn.Module:
    made = Retrieved(
        width=WIDTH, heads=HEADS, head_width=HEAD, memory_width=MEMORY, bias=bias, places=places
    ).build()
    dice = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(0.0, 0.6, generator=dice)
    return made


def given_step() -> tuple[Tensor, Step]:
    dice = torch.manual_seed(2)
    memories = tuple(torch.randn(n, MEMORY, generator=dice) for n in HELD)
    x = torch.randn(sum(LENGTHS), WIDTH, generator=dice)
    return x, fresh_step(list(LENGTHS), memories={"encoder": memories})


def slow(module: torch.nn.Module, x: Tensor, memory: Tensor, places: int) -> Tensor:
    """One row in float64: keys and values of every place, the best of them by sorting, softmax."""
    weights = {n: p.detach().double() for n, p in module.named_parameters()}

    def project(name: str, h: Tensor) -> Tensor:
        y = h @ weights[f"{name}.weight"].T
        bias = weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    keys, values = project("kv", memory.double()).chunk(2, -1)
    queries = project("q", x.double())
    out = torch.zeros(len(x), HEADS * HEAD, dtype=torch.float64)
    for token, head in itertools.product(range(len(x)), range(HEADS)):
        at = slice(head * HEAD, (head + 1) * HEAD)
        scores = [float(queries[token, at] @ key[at]) * HEAD**-0.5 for key in keys]
        best = sorted(range(len(scores)), key=lambda i: -scores[i])[:places]
        shares = torch.tensor([scores[i] for i in best], dtype=torch.float64).softmax(0)
        for share, i in zip(shares, best, strict=True):
            out[token, at] += share * values[i, at]
    return project("out", out)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("places", [1, 4, 23, 64])
@torch.no_grad()
def test_it_equals_a_slow_attention_over_the_best_places(places: int, bias: bool) -> None:
    module = part(places, bias)
    x, step = given_step()
    got = module(x, step, None)
    for row, memory in enumerate(step.memories["encoder"]):
        at = step.span(row)
        expected = slow(module, x[at], memory, places)
        torch.testing.assert_close(got[at].double(), expected, atol=1e-5, rtol=1e-5)
    plain = CrossAttention(
        width=WIDTH, heads=HEADS, head_width=HEAD, memory_width=MEMORY, bias=bias
    ).build()
    plain.load_state_dict(module.state_dict())
    full = plain(x, step, None)
    same = [
        bool(torch.allclose(got[step.span(r)], full[step.span(r)], atol=1e-5)) for r in range(3)
    ]
    assert same == [places >= n for n in HELD], (
        "all places are read exactly where there are no more"
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 50), st.integers(1, 60), st.integers(0, 10**6))
def test_nearest_is_the_exact_search(m: int, n: int, count: int, seed: int) -> None:
    dice = torch.Generator().manual_seed(seed)
    queries, held = torch.randn(m, 5, generator=dice), torch.randn(n, 5, generator=dice)
    count = min(count, n)
    products = [[float(q.double() @ h.double()) for h in held] for q in queries]
    wanted = [sorted(range(n), key=lambda i: -row[i])[:count] for row in products]
    assert nearest(queries, held, count).tolist() == wanted


def test_blocks_of_queries_change_nothing_and_bound_what_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dice = torch.manual_seed(3)
    queries, held = torch.randn(17, HEADS, 8, generator=dice), torch.randn(90, 8, generator=dice)
    searched: list[int] = []
    real = retrieved.nearest

    def counted(queries: Tensor, held: Tensor, count: int) -> Tensor:
        searched.append(queries.shape[0])
        return real(queries, held, count)

    monkeypatch.setattr(retrieved, "nearest", counted)
    whole = {count: nearest_sums(queries, held, count) for count in (12, 90, 200)}
    assert searched == [17 * HEADS], "where all places are read, none is searched"
    monkeypatch.setattr(retrieved, "ELEMENTS", 5 * HEADS * 12 * 8)
    torch.testing.assert_close(nearest_sums(queries, held, 12), whole[12])
    assert searched[1:] == [5 * HEADS] * 3 + [2 * HEADS]
    for count in (90, 200):
        torch.testing.assert_close(nearest_sums(queries, held, count), whole[count])
    assert nearest_sums(queries[:0], held, 12).shape == (0, HEADS, 8)


def test_gradients_flow_through_what_is_retrieved() -> None:
    """Equal to those of full attention masked to the same places, and zero at the others."""
    module, places = part(4), 4
    x, step = given_step()
    (memory,) = step.memories["encoder"][2:]
    memory = memory.requires_grad_()
    x = x[: LENGTHS[2]].requires_grad_()
    leaves = [x, memory, *module.parameters()]
    out = module(x, fresh_step([len(x)], memories={"encoder": (memory,)}), None)
    got = torch.autograd.grad(out.square().sum(), leaves)
    q = module.q(x).unflatten(-1, (HEADS, HEAD)) * HEAD**-0.5  # type: ignore[operator]
    keys, values = module.kv(memory).unflatten(-1, (2, HEADS, HEAD)).unbind(1)  # type: ignore[operator]
    scores = torch.einsum("thc,nhc->thn", q, keys)
    least = scores.topk(places).values[..., -1:]
    shares = scores.masked_fill(scores < least, float("-inf")).softmax(-1)
    mixed = torch.einsum("thn,nhc->thc", shares, values)
    wanted = torch.autograd.grad(
        module.out(mixed.flatten(1)).square().sum(),
        leaves,  # type: ignore[operator]
    )
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    unread = (shares == 0).all(0).all(0)
    assert 0 < unread.sum() < len(memory)
    assert not got[1][unread].any()
    assert got[1][~unread].any(1).all()


@torch.no_grad()
def test_the_state_is_the_memory_itself_and_deltas_count() -> None:
    module, places = part(4), 4
    spec = module.spec
    assert isinstance(spec, Retrieved)
    x, step = given_step()
    pool = StatePool([spec.state(), spec.state()], budget=1 << 14, page=4)
    assert sum(g.pages.token_bytes for g in pool.memories.values()) == 4 * MEMORY
    states = [pool.open({"encoder": n}) for n in HELD]
    handle = pool.handles(states, list(LENGTHS))[1]
    torch.testing.assert_close(module(x, step, handle), module(x, step, None))
    low = torch.randn(2, MEMORY, generator=torch.manual_seed(4))
    high = torch.randn(2 * HEADS * HEAD, 2, generator=torch.manual_seed(5)) / 4
    module.kv.deltas.append(lambda x, y: y + x @ low.T @ high.T)  # type: ignore[union-attr]
    got = module(x, step, None)
    merged = part(places)
    merged.get_parameter("kv.weight").add_(high @ low)
    torch.testing.assert_close(got, merged(x, step, None), atol=1e-5, rtol=1e-5)


def by_hand(length: int, source: int) -> list[tuple[int, int, int]]:
    """For each place of a source: the place, and the window that it is read in."""
    found = []
    for place in range(source):
        start = 0
        while place >= start + length - length // 4 and start + length < source:
            start += length - 2 * (length // 4)
        start = max(min(start, source - length), 0)
        found.append((place, start, min(start + length, source)))
    return found


@settings(max_examples=200, deadline=None)
@given(st.integers(4, 40), st.integers(1, 300))
def test_chunks_keep_each_place_once_amid_a_quarter_of_a_length(length: int, source: int) -> None:
    chunks = Overlap(length=length).of(source)
    kept = [(at, c.start, c.end) for c in chunks for at in range(c.first, c.last)]
    assert kept == by_hand(length, source)
    for c in chunks:
        assert c.end - c.start == min(length, source)
        assert c.first - c.start >= length // 4 or c.first == 0
        assert c.end - c.last >= length // 4 or c.last == source
    for c in chunks[1:-1]:
        assert abs((c.last - c.first) - length / 2) <= 2, "the middle half"


def test_chunks_of_a_worked_example() -> None:
    """Windows of 8 over 21 tokens, every 4: the last one begins at 13 instead of 16."""
    chunks = Overlap(length=8).of(21)
    told = [(c.start, c.end, c.first, c.last) for c in chunks]
    assert told == [
        (0, 8, 0, 6),
        (4, 12, 6, 10),
        (8, 16, 10, 14),
        (12, 20, 14, 18),
        (13, 21, 18, 21),
    ]
    assert Overlap(length=8).of(8) == [Chunk(row=0, start=0, end=8, first=0, last=8)]
    with pytest.raises(ConfigError, match="chunks of 3 tokens have no middle half: at least 4"):
        Overlap(length=3)


def test_passes_are_bounded() -> None:
    chunks = [*Overlap(length=1000).of(12_345), *Overlap(length=TOGETHER + 1).of(10_000, row=1)]
    found = passes(chunks)
    assert [c for some in found for c in some] == chunks
    sizes = [sum(c.end - c.start for c in some) for some in found]
    assert all(n <= TOGETHER or len(some) == 1 for n, some in zip(sizes, found, strict=True))
    assert sizes[0] == 4000


def test_refusals() -> None:
    from keifu.families.rnn_search import family as recurrent
    from keifu.families.t5 import T5
    from keifu.nn.pair import Pair

    spec, other = T5.tiny().spec(), recurrent.tiny().spec()
    assert isinstance(spec, Pair)
    assert isinstance(other, Pair)
    with pytest.raises(KeifuError, match=r"retrieve=0 is not allowed: a head reads at least 1"):
        retrieved.retrieving(spec, 0, length=8)
    with pytest.raises(KeifuError, match="has no cross-attention to retrieve for"):
        retrieved.retrieving(other, 4, length=8)
    again = retrieved.retrieving(retrieved.retrieving(spec, 4, length=8), 9, length=16)
    assert again == retrieved.retrieving(spec, 9, length=16)
