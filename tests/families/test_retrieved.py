"""Unlimiformer over every family of encoder-decoders: what it equals, keeps and can read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.families import families
from keifu.families.bart import BART
from keifu.inference.engine import Engine
from keifu.inference.request import Sampling
from keifu.inference.rules import Rules
from keifu.inference.runner import step_of
from keifu.nn import retrieved
from keifu.nn.attention import CrossAttention
from keifu.nn.pair import Pair, PairModule
from keifu.nn.retrieved import retrieving
from keifu.nn.state import PerToken, StatePool, state_bytes
from tests.families.pair_parity import numbers
from tests.families.parity import tokens


def pairs() -> list[str]:
    """Families whose decoder has cross-attention."""
    found = []
    for name in families:
        spec = families[name].tiny().spec()
        if isinstance(spec, Pair) and isinstance(spec.decoder.blocks[0].cross, CrossAttention):
            found.append(name)
    return found


PAIRS = pairs()
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}


def built(spec: Any, like: PairModule | None = None) -> PairModule:
    """With random weights, every one of them, or with those of another."""
    made = spec.build()
    assert isinstance(made, PairModule)
    if like is not None:
        made.load_state_dict(like.state_dict())
        return made.eval()
    dice = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in made.named_parameters():
            p.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.3, generator=dice)
    return made.eval()


def both(name: str, places: int, length: int) -> tuple[PairModule, PairModule]:
    """A family's tiny model, and the same one retrieving."""
    spec = families[name].tiny().spec()
    assert isinstance(spec, Pair)
    full = built(spec)
    return full, built(retrieving(spec, places, length=length), full)


def engine(model: PairModule, **more: Any) -> Engine:
    vocab = model.decoder.input.table.outputs
    source = model.encoder.input.table.outputs
    given = {"context": 24, "budget": 1 << 24, "parallel": 3, "source_vocab": source, **more}
    return Engine(model, numbers(vocab), rules=Rules(start=(0,)), **given)


def test_it_is_any_pair() -> None:
    assert {"t5", "bart", "mbart", "pegasus", "marian", "switch", "transformer"} <= set(PAIRS)


@pytest.mark.parametrize("name", PAIRS)
@torch.no_grad()
def test_reading_all_places_is_full_cross_attention(name: str) -> None:
    """Logits with padding; cached greedy and beam search through the engine."""
    full, ours = both(name, places=17, length=17)
    vocab = full.encoder.input.table.outputs
    source, target = tokens(vocab, 3, 17), tokens(full.decoder.input.table.outputs, 3, 9, seed=2)
    masks = torch.arange(17) < torch.tensor([[17], [3], [11]])
    wanted = full(source, target, source_mask=masks.long()).logits
    got = ours(source, target, source_mask=masks.long()).logits
    scale = max(1.0, float(wanted.abs().max()))
    assert float((got - wanted).abs().max()) < 1e-5 * scale
    engines = engine(full), engine(ours)
    try:
        for asked in (Sampling(max_tokens=8, **GREEDY), Sampling(max_tokens=8, beams=3, n=3)):
            said = []
            for each in engines:
                streams = [
                    each.submit(row[mask].tolist(), asked)
                    for row, mask in zip(source, masks, strict=True)
                ]
                said.append([[c.tokens for c in s.result().choices] for s in streams])
            assert said[0] == said[1]
    finally:
        for each in engines:
            each.close()


@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_every_head_of_every_layer_reads_its_exact_best(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The places that each head finds are those of greatest query . key, computed the usual way."""
    full, ours = both(name, places=5, length=64)
    source, target = tokens(90, 1, 40), tokens(90, 1, 7, seed=2)
    (memory,) = ours.encode(source)
    found: list[Tensor] = []
    real = retrieved.nearest

    def kept(queries: Tensor, held: Tensor, count: int) -> Tensor:
        found.append(real(queries, held, count))
        return found[-1]

    asked: list[Tensor] = []
    for block in ours.decoder.blocks:
        block.get_submodule("cross.q").register_forward_hook(lambda *given: asked.append(given[-1]))
    monkeypatch.setattr(retrieved, "nearest", kept)
    ours.decode(target, (memory,))
    depth = len(ours.decoder.blocks)
    assert len(found) == len(asked) == depth > 1
    for block, q, places in zip(full.decoder.blocks, asked, found, strict=True):
        cross: Any = block.get_submodule("cross")
        shape = (cross.spec.heads, cross.spec.head_width)
        keys = cross.kv(memory).chunk(2, -1)[0].unflatten(-1, shape).double()
        scores = torch.einsum("thc,nhc->thn", q.unflatten(-1, shape).double(), keys)
        best = scores.argsort(-1, descending=True)[..., :5].flatten(0, 1)
        assert torch.equal(places, best)
    assert len({tuple(row) for row in found[0].tolist()}) > 5, "heads look for different places"


@pytest.mark.parametrize("name", PAIRS)
@torch.no_grad()
def test_cached_equals_uncached_beyond_the_chunk(name: str) -> None:
    """Long sources of three rows, few places a head, any split of the targets."""
    _, ours = both(name, places=4, length=12)
    vocab = ours.encoder.input.table.outputs
    sources = [tokens(vocab, 1, n, seed=n)[0] for n in (50, 5, 31)]
    targets = [tokens(ours.decoder.input.table.outputs, 1, 9, seed=20 + i)[0] for i in range(3)]
    memories = [ours.encode(s[None])[0] for s in sources]
    assert [len(m) for m in memories] == [50, 5, 31]
    pool = StatePool(ours.spec.entries(), budget=1 << 22, page=4)
    states = [pool.open({"encoder": len(m)}) for m in memories]
    got: list[list[Tensor]] = [[], [], []]
    for i, counts in enumerate(((4, 1, 2), (1, 1, 1), (1, 6, 3), (3, 1, 3))):
        for state, n in zip(states, counts, strict=True):
            pool.reserve(state, n)
        step = step_of(states, counts, [9] * 3, torch.device("cpu"))
        step = replace(step, memories={"encoder": tuple(memories)} if i == 0 else {})
        at = [state.length for state in states]
        fed = torch.cat([t[a : a + n] for t, a, n in zip(targets, at, counts, strict=True)])
        out = ours.decoder.run(fed, step, pool.handles(states, counts)).logits
        assert out is not None
        for parts, part in zip(got, out.split(counts), strict=True):
            parts.append(part)
        for state, n in zip(states, counts, strict=True):
            pool.advance(state, n)
    for source, target, parts in zip(sources, targets, got, strict=True):
        whole = ours(source[None], target[None]).logits[0]
        torch.testing.assert_close(torch.cat(parts), whole, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", PAIRS)
@torch.no_grad()
def test_chunks_equal_reading_each_alone(name: str) -> None:
    """The encoder on every chunk by itself, cut and joined by hand; sources that fit stay whole."""
    full, ours = both(name, places=4, length=12)
    vocab = full.encoder.input.table.outputs
    source = tokens(vocab, 1, 31)[0]
    windows = ((0, 12, 0, 9), (6, 18, 9, 15), (12, 24, 15, 21), (18, 30, 21, 27), (19, 31, 27, 31))
    parts = [full.encode(source[a:b][None])[0][c - a : d - a] for a, b, c, d in windows]
    (got,) = ours.encode(source[None])
    torch.testing.assert_close(got, torch.cat(parts), atol=1e-5, rtol=1e-5)
    short = source[:12][None]
    assert torch.equal(ours.encode(short)[0], full.encode(short)[0])


@pytest.mark.parametrize("name", PAIRS)
def test_the_pool_holds_the_memory_alone(name: str) -> None:
    """n x width numbers for all layers and heads, where full attention keeps 2 x depth x inner."""
    full, ours = (model.spec for model in both(name, places=4, length=12))
    decoder = full.decoder
    crosses = [decoder.blocks[i].cross for i in decoder.order()]
    width = crosses[0].memory_width or crosses[0].width  # type: ignore[union-attr]
    own = sum(
        e.shape[0] * e.shape[1]
        for use in ours.entries()
        for e in use.values()
        if isinstance(e, PerToken)
    )
    assert state_bytes(ours.entries(), torch.float32)[1] == 4 * (own + width)
    kept = sum(2 * c.heads * c.head_width for c in crosses)  # type: ignore[union-attr]
    assert state_bytes(full.entries(), torch.float32)[1] == 4 * (own + kept)
    pool = StatePool(ours.entries(), budget=1 << 22, page=4, places=100)
    (group,) = pool.memories.values()
    assert [tuple(t.shape) for t in group.pages.storage.values()] == [(100, width)]


def bart(places: int, length: int, vocab: int = 96) -> tuple[PairModule, PairModule]:
    spec = replace(BART.tiny(), vocab=vocab, context=length).spec()
    full = built(spec)
    return full, built(retrieving(spec, places, length=length), full)


def test_beams_search_one_datastore_in_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = bart(places=4, length=16)
    asked: list[tuple[int, int]] = []
    real = retrieved.nearest_sums

    def counted(queries: Tensor, held: Tensor, count: int) -> Tensor:
        asked.append((queries.shape[0], held.shape[0]))
        return real(queries, held, count)

    monkeypatch.setattr(retrieved, "nearest_sums", counted)
    made = engine(ours)
    try:
        pages = made.pool.memories["encoder"].pages
        least, run = [len(pages.free)], made.runners[-1].run

        def watched(*args: Any) -> Tensor:
            least.append(len(pages.free))
            return run(*args)

        monkeypatch.setattr(made.runners[-1], "run", watched)
        done = made.submit(tokens(90, 1, 50)[0].tolist(), Sampling(max_tokens=6, beams=4, n=4))
        assert len({c.tokens for c in done.result().choices}) == 4
        assert pages.pages - min(least) == 2, "50 places fit two pages of 32, for all beams"
        assert len(pages.free) == pages.pages
        assert set(asked) <= {(n, 50) for n in range(1, 5)}
        assert (4, 50) in asked
    finally:
        made.close()


def test_long_sources_are_read_a_pass_a_step_and_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A source of many passes beside short ones says what it says alone; cancelled, it ends."""
    _, ours = bart(places=4, length=64)
    long = tokens(90, 1, 20_000)[0].tolist()
    short = tokens(90, 1, 30, seed=3)[0].tolist()
    events: list[str] = []
    real = ours.read_chunks

    def passed(*args: Any) -> list[Tensor]:
        events.append("pass")
        return real(*args)

    monkeypatch.setattr(ours, "read_chunks", passed)
    made = engine(ours, context=40, places=21_000)
    try:
        alone = made.submit(long, Sampling(max_tokens=6, **GREEDY)).result().tokens
        assert len(events) == 10, "625 chunks of 64, 64 of them a pass"
        (memory,) = ours.encode(torch.tensor([long]))
        said = [0]
        for _ in range(6):
            logits = ours.decode(torch.tensor([said]), (memory,)).logits
            assert logits is not None
            said.append(int(logits[0, -1].argmax()))
        assert list(alone) == said[1:]
        events.clear()
        run = made.runners[-1].run

        def stepped(*args: Any) -> Tensor:
            events.append("token")
            return run(*args)

        monkeypatch.setattr(made.runners[-1], "run", stepped)
        first = made.submit(short, Sampling(max_tokens=30, **GREEDY))
        next(iter(first))
        second = made.submit(long, Sampling(max_tokens=6, **GREEDY))
        assert second.result().tokens == alone
        first.result()
        passes = [i for i, e in enumerate(events) if e == "pass"]
        between = events[passes[1] : passes[-1]]
        assert between.count("token") >= 5, "the short one wrote meanwhile"
        third = made.submit(long, Sampling(max_tokens=6, **GREEDY))
        third.cancel()
        assert third.result().finish == "cancelled"
        assert made.pool.memories["encoder"].pages.free == list(range(657))
    finally:
        made.close()


def test_a_source_beyond_the_budget_and_an_empty_one_are_refused() -> None:
    _, ours = bart(places=4, length=16)
    made = engine(ours, places=64)
    try:
        with pytest.raises(ContextLengthError, match=r"has 65 tokens, but the context holds 64"):
            made.submit([3] * 65, Sampling(max_tokens=2))
        with pytest.raises(KeifuError, match="the prompt has no tokens"):
            made.submit([], Sampling(max_tokens=2))
        assert len(made.submit([3] * 64, Sampling(max_tokens=2, **GREEDY)).result().tokens) == 2
    finally:
        made.close()


LONG = """
import resource, sys, time
import torch
from keifu.inference.request import Sampling
from tests.families.test_retrieved import BART, built, engine, replace, retrieving, tokens

torch.set_num_threads(1)
n = int(sys.argv[1])
ours = built(retrieving(replace(BART.tiny(), context=64).spec(), 16, length=64))
made = engine(ours, places=n, budget=n * 32 * 4 + (1 << 18))
asked = Sampling(max_tokens=4, temperature=0.0, ignore_eos=True)
made.submit([3] * 4096, asked).result()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begin = time.process_time()
said = made.submit(tokens(90, 1, n)[0].tolist(), asked).result().tokens
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made.close()
print(peak - before, time.process_time() - begin, *said)
"""


def run_long(n: int) -> tuple[int, float, list[int]]:
    """Bytes that a source of n tokens adds to a process's peak, its seconds, what was said."""
    done = subprocess.run(
        [sys.executable, "-c", LONG, str(n)], capture_output=True, text=True, check=True
    )
    grown, seconds, *said = done.stdout.split()
    return int(grown) * 1024, float(seconds), [int(t) for t in said]


@torch.no_grad()
def test_fifty_thousand_tokens_run_in_memory_of_a_few_datastores() -> None:
    """Width 32: the datastore is 6.4 MB. While it is joined and written it is there three times."""
    n, width = 50_000, 32
    grown, _, said = run_long(n)
    assert grown < 4 * n * width * 4 + (32 << 20), f"{grown / 2**20:.0f} MiB"
    ours = built(retrieving(replace(BART.tiny(), context=64).spec(), 16, length=64))
    (memory,) = ours.encode(tokens(90, 1, n))
    assert memory.shape == (n, width)
    ids = [0]
    for _ in range(4):
        logits = ours.decode(torch.tensor([ids]), (memory,)).logits
        assert logits is not None
        ids.append(int(logits[0, -1].argmax()))
    assert said == ids[1:]
