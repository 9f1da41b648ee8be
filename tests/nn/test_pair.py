"""Encoder-decoders: T5 built from parts against Hugging Face's, and memories written once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from keifu.core.errors import KeifuError
from keifu.inference.engine import Engine
from keifu.inference.request import Sampling
from keifu.inference.runner import step_of
from keifu.nn.attention import Attention, CrossAttention
from keifu.nn.block import Block
from keifu.nn.heads import LMHead
from keifu.nn.inputs import Tokens
from keifu.nn.masks import Causal, Full
from keifu.nn.mlp import MLP, GatedMLP
from keifu.nn.norms import RMSNorm
from keifu.nn.pages import OutOfState
from keifu.nn.pair import Pair, PairModule
from keifu.nn.part import count
from keifu.nn.positions import BucketBias, SharedBias
from keifu.nn.stack import Stack, repeat
from keifu.nn.state import (
    Entry,
    Fixed,
    Memory,
    PerToken,
    RequestState,
    StatePool,
    state_bytes,
)
from keifu.nn.wiring import Pre
from tests.inference.test_engine import byte_tokenizer

VOCAB, WIDTH, HEADS, HEAD, HIDDEN, DEPTH, BUCKETS, REACH = 64, 16, 4, 6, 24, 2, 8, 12


def t5(gated: bool) -> Pair:
    """T5's parts: 1.0 has ReLU and one table for all, 1.1 a gated GELU and a head of its own."""
    norm = RMSNorm(width=WIDTH)
    mlp = (
        GatedMLP(width=WIDTH, hidden=HIDDEN, act="gelu_tanh")
        if gated
        else MLP(width=WIDTH, hidden=HIDDEN, act="relu", bias=False)
    )

    def side(encoder: bool) -> Stack:
        mixer = Attention(
            width=WIDTH, heads=HEADS, kv_heads=HEADS, head_width=HEAD, scale=1.0,
            position=SharedBias(), mask=Full() if encoder else Causal(),
        )  # fmt: skip
        cross = CrossAttention(width=WIDTH, heads=HEADS, head_width=HEAD, scale=1.0)
        block = Block(mixer=mixer, cross=None if encoder else cross, mlp=mlp, wiring=Pre(norm=norm))
        scale = 1.0 if gated else WIDTH**-0.5
        head = LMHead(width=WIDTH, vocab=VOCAB, tied=not gated, scale=scale)
        bias = BucketBias(heads=HEADS, buckets=BUCKETS, distance=REACH, bidirectional=encoder)
        return Stack(
            input=Tokens(vocab=VOCAB, width=WIDTH),
            blocks=repeat(block, DEPTH),
            norm=norm,
            head=None if encoder else head,
            shared=(("bias", bias),),
        )

    return Pair(encoder=side(True), decoder=side(False), tied=True)


def under_our_names(theirs: T5ForConditionalGeneration) -> dict[str, Tensor]:
    """Their weights by our names."""
    found = {"encoder.input.table.weight": theirs.shared.weight}
    found["decoder.input.table.weight"] = theirs.shared.weight
    for side in ("encoder", "decoder"):
        stack: Any = getattr(theirs, side)
        first = stack.block[0].layer[0].SelfAttention.relative_attention_bias
        found[f"{side}.shared.bias.table"] = first.weight
        found[f"{side}.norm.weight"] = stack.final_layer_norm.weight
        for i, block in enumerate(stack.block):
            at, layers = f"{side}.blocks.{i}", list(block.layer)
            names = ["mixer", "cross", "mlp"] if side == "decoder" else ["mixer", "mlp"]
            for name, layer in zip(names, layers, strict=True):
                found[f"{at}.norms.{name}_norm.weight"] = layer.layer_norm.weight
            a = layers[0].SelfAttention
            found[f"{at}.mixer.qkv.weight"] = torch.cat([a.q.weight, a.k.weight, a.v.weight])
            found[f"{at}.mixer.out.weight"] = a.o.weight
            if side == "decoder":
                a = layers[1].EncDecAttention
                found[f"{at}.cross.q.weight"] = a.q.weight
                found[f"{at}.cross.kv.weight"] = torch.cat([a.k.weight, a.v.weight])
                found[f"{at}.cross.out.weight"] = a.o.weight
            mlp = dict(layers[-1].DenseReluDense.named_parameters())
            found[f"{at}.mlp.down.weight"] = mlp["wo.weight"]
            if "wi.weight" in mlp:
                found[f"{at}.mlp.up.weight"] = mlp["wi.weight"]
            else:
                rows = torch.cat([mlp["wi_0.weight"], mlp["wi_1.weight"]])
                found[f"{at}.mlp.gate_up.weight"] = rows
    return found


@pytest.fixture(params=["1.0", "1.1"])
def models(request: pytest.FixtureRequest) -> tuple[PairModule, T5ForConditionalGeneration]:
    gated = request.param == "1.1"
    config = T5Config(
        vocab_size=VOCAB, d_model=WIDTH, d_kv=HEAD, d_ff=HIDDEN, num_layers=DEPTH, num_heads=HEADS,
        relative_attention_num_buckets=BUCKETS, relative_attention_max_distance=REACH,
        feed_forward_proj="gated-gelu" if gated else "relu", tie_word_embeddings=not gated,
        decoder_start_token_id=0,
    )  # fmt: skip
    theirs = T5ForConditionalGeneration(config).eval()
    if gated:
        theirs.lm_head.weight = nn.Parameter(torch.empty(VOCAB, WIDTH))
    made = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.normal_(1.0 if "layer_norm" in name else 0.0, 0.3, generator=made)
    spec = t5(gated)
    ours = spec.build()
    assert isinstance(ours, PairModule)
    weights = under_our_names(theirs)
    if gated:
        weights["decoder.head.out.weight"] = theirs.lm_head.weight
    ours.load_state_dict(weights)
    assert count(spec) == sum(p.numel() for p in theirs.parameters())
    return ours.eval(), theirs


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    made = torch.manual_seed(1)
    source = torch.randint(1, VOCAB, (3, 17), generator=made)
    target = torch.randint(1, VOCAB, (3, 15), generator=made)
    source_mask = torch.arange(17) < torch.tensor([[17], [3], [11]])
    target_mask = torch.arange(15) < torch.tensor([[4], [15], [9]])
    return source, target, source_mask.long(), target_mask.long()


@torch.no_grad()
def test_t5_equals_hugging_face_with_padding(models: tuple[PairModule, Any]) -> None:
    ours, theirs = models
    source, target, source_mask, target_mask = batch()
    wanted = theirs(
        input_ids=source, attention_mask=source_mask,
        decoder_input_ids=target, decoder_attention_mask=target_mask,
    )  # fmt: skip
    got = ours(source, target, source_mask=source_mask, target_mask=target_mask).logits
    keep = target_mask.bool()
    torch.testing.assert_close(got[keep], wanted.logits[keep], atol=1e-4, rtol=1e-4)
    whole = ours(source, target).logits
    wanted = theirs(input_ids=source, decoder_input_ids=target).logits
    torch.testing.assert_close(whole, wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_cached_decoding_equals_uncached_and_computes_a_memory_once(
    models: tuple[PairModule, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = models
    source, target, source_mask, _ = batch()
    memory = ours.encode(source, attention_mask=source_mask)
    whole = ours.decode(target, memory).logits
    assert whole is not None
    pool = StatePool(ours.spec.entries(), budget=1 << 20, page=4)
    states = [pool.open({"encoder": m.shape[0]}) for m in memory]
    projected: list[int] = []
    for block in ours.decoder.blocks:
        block.get_submodule("cross.kv").register_forward_hook(
            lambda module, given, made: projected.append(made.shape[0])
        )
    got = []
    for i, n in enumerate((4, 1, 1, 7, 1, 1)):
        for state in states:
            pool.reserve(state, n)
        step = step_of(states, [n] * 3, [15] * 3, source.device)
        if i == 0:
            step = replace(step, memories={"encoder": memory})
        fed = target[:, states[0].length : states[0].length + n].flatten()
        out = ours.decoder.run(fed, step, pool.handles(states, [n] * 3)).logits
        assert out is not None
        got.append(out.unflatten(0, (3, n)))
        for state in states:
            pool.advance(state, n)
    torch.testing.assert_close(torch.cat(got, 1), whole, atol=1e-4, rtol=1e-4)
    assert sorted(projected) == sorted([17, 3, 11] * DEPTH)


@torch.no_grad()
def test_the_engine_generates_as_hugging_face_does(models: tuple[PairModule, Any]) -> None:
    ours, theirs = models
    sources = [torch.arange(2, 2 + n * 3, 3) % VOCAB for n in (4, 17, 1, 9, 6)]
    budget = state_bytes(ours.spec.entries(), torch.float32)[1] * 32 * 6
    engine = Engine(ours.decoder, byte_tokenizer(), context=40, parallel=3, budget=budget)
    asked = Sampling(max_tokens=9, temperature=0.0)
    memories = [ours.encode(source[None])[0] for source in sources]
    streams = [engine.submit([0], asked, memories={"encoder": m}) for m in memories]
    for source, stream in zip(sources, streams, strict=True):
        wanted = theirs.generate(source[None], max_new_tokens=9, eos_token_id=None)
        assert list(stream.result().tokens) == wanted[0, 1:].tolist()
    asked = Sampling(max_tokens=9, temperature=0.0, beams=3, n=3)
    beams = engine.submit([0], asked, memories={"encoder": memories[1]}).result()
    wanted = theirs.generate(
        sources[1][None], max_new_tokens=9, eos_token_id=None, num_beams=3, num_return_sequences=3
    )
    assert [list(c.tokens) for c in beams.choices] == wanted[:, 1:].tolist()
    assert len(engine.pool.memories["encoder"].pages.free) == 6
    with pytest.raises(KeifuError, match="reads the memories encoder; given were none"):
        engine.submit([0], asked)
    with pytest.raises(KeifuError, match="is 193 long and the state budget holds 192"):
        engine.submit([0], asked, memories={"encoder": torch.zeros(193, WIDTH)})
    engine.close()


@torch.no_grad()
def test_gradients_reach_the_encoder() -> None:
    pair = t5(gated=False).build()
    assert isinstance(pair, PairModule)
    pair.initialise(seed=1, std=0.3)
    source, target, source_mask, target_mask = batch()
    with torch.enable_grad():
        logits = pair(source, target, source_mask=source_mask, target_mask=target_mask).logits
        logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pair.parameters())


ENTRIES = [
    {"k": PerToken((2,)), "m": Memory((3,)), "h": Fixed((1,))},
    {"m": Memory((2, 2)), "image": Memory((1,), source="image")},
]


def made(pool: StatePool, state: RequestState, use: int, name: str, value: float | None) -> Tensor:
    """Read an entry; None: it must be there already."""
    handle = pool.handles([state], [0])[use]
    entry = pool.entries[use][name]
    assert isinstance(entry, Memory)
    length = state.memories[entry.source].length

    def make() -> Tensor:
        assert value is not None, "a memory is written once"
        return torch.full((length, *entry.shape), value)

    return handle.memory(name, 0, make)


def test_forks_share_a_memory_and_the_last_one_gives_it_back() -> None:
    pool = StatePool(ENTRIES, budget=1 << 12, slots=4, page=4)
    free = {s: len(g.pages.free) for s, g in pool.memories.items()}
    a = pool.open({"encoder": 6, "image": 9})
    assert (made(pool, a, 0, "m", 5.0) == 5.0).all()
    assert made(pool, a, 0, "m", None).shape == (6, 3)
    b = pool.fork(a)
    assert (made(pool, b, 0, "m", None) == 5.0).all()
    assert (made(pool, b, 1, "m", 7.0) == 7.0).all()
    assert (made(pool, a, 1, "m", None) == 7.0).all(), "what a fork writes, all forks have"
    assert free["encoder"] - len(pool.memories["encoder"].pages.free) == 2
    c = pool.open({"encoder": 5, "image": 1})
    assert (made(pool, c, 0, "m", 1.0) == 1.0).all()
    pool.free(a)
    assert pool.restore(b, 0) == 0
    assert (made(pool, b, 0, "m", None) == 5.0).all(), "a memory outlives a restore"
    pool.free(b)
    pool.free(c)
    assert {s: len(g.pages.free) for s, g in pool.memories.items()} == free


def test_a_memory_is_refused_where_it_does_not_fit_or_was_not_opened() -> None:
    pool = StatePool(ENTRIES, budget=1 << 10, slots=2, page=4)
    room = pool.memories["encoder"].pages.pages * 4
    before = {s: len(g.pages.free) for s, g in pool.memories.items()}
    with pytest.raises(OutOfState, match="memory of"):
        pool.open({"image": 1, "encoder": room + 1})
    assert {s: len(g.pages.free) for s, g in pool.memories.items()} == before
    assert room == pool.capacity, "a place of a memory counts as a token"
    assert state_bytes(ENTRIES, torch.float32) == (4, 4 * (2 + 3 + 4 + 1))
    state = pool.open()
    with pytest.raises(ValueError, match="without its memory 'encoder'"):
        pool.handles([state], [0])[0].memory("m", 0, lambda: torch.zeros(1, 3))
    other = pool.open({"encoder": 2})
    with pytest.raises(ValueError, match="a memory of 3"):
        pool.handles([other], [0])[0].memory("m", 0, lambda: torch.zeros(3, 3))


def test_uses_share_an_entry_by_name_and_it_is_counted_once() -> None:
    one = Memory((3,), shared="places")
    entries: list[dict[str, Entry]] = [
        {"m": one, "k": PerToken((2,))},
        {"m": one, "own": Memory((1,))},
    ]
    assert state_bytes(entries, torch.float32) == (0, 4 * (3 + 2 + 1))
    pool = StatePool(entries, budget=4 * 6 * 4 * 5, page=4)
    (storage,) = (m.pages.storage for m in pool.memories.values())
    assert {key: tuple(t.shape) for key, t in storage.items()} == {
        (-1, "encoder.places"): (20, 3), (1, "own"): (20, 1),
    }  # fmt: skip
    a = pool.open({"encoder": 7})
    assert (made(pool, a, 1, "m", 2.0) == 2.0).all()
    assert (made(pool, a, 0, "m", None) == 2.0).all(), "the first use that asks writes it for all"
    b = pool.fork(a)
    mine, theirs = (made(pool, state, 0, "m", None) for state in (a, b))
    assert mine.data_ptr() == theirs.data_ptr(), "forks read the same places"
    other = Memory((4,), shared="places")
    with pytest.raises(ValueError, match="cannot be one"):
        StatePool([*entries, {"m": other}], budget=1 << 12)


def test_places_may_be_more_than_tokens() -> None:
    entries: list[dict[str, Entry]] = [{"k": PerToken((2,)), "m": Memory((3,))}]
    pool = StatePool(entries, budget=4 * (3 * 40 + 2 * 9), page=4, places=37)
    assert (pool.room(), pool.capacity) == ({"encoder": 40}, 8)
    with pytest.raises(KeifuError, match=r"budget of 480 bytes does not hold one page of 4 tokens"):
        StatePool(entries, budget=4 * 3 * 40, page=4, places=37)
    with pytest.raises(KeifuError, match="does not hold 2 requests and 37 places of memory"):
        StatePool(entries, budget=479, slots=2, page=4, places=37)
    alone = StatePool([{"m": Memory((3,))}], budget=480, page=4, places=40)
    assert alone.room() == {"encoder": 40}, "nothing is left, and nothing else is needed"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), max_size=25))
def test_any_order_of_operations_keeps_every_memory(moves: list[tuple[int, int]]) -> None:
    pool = StatePool([{"m": Memory((1,))}], budget=4 * 40, page=4)
    live: list[tuple[RequestState, int, float]] = []
    for i, (kind, n) in enumerate(moves):
        try:
            if kind == 0:
                live.append((pool.open({"encoder": n}), n, float(i)))
            elif kind == 1 and live:
                state, length, value = live[n % len(live)]
                live.append((pool.fork(state), length, value))
            elif kind == 2 and live:
                pool.free(live.pop(n % len(live))[0])
        except OutOfState:
            assert kind == 0
        for state, length, value in live:
            assert made(pool, state, 0, "m", value).flatten().tolist() == [value] * length
    for state, _, _ in live:
        pool.free(state)
    assert len(pool.memories["encoder"].pages.free) == 10
