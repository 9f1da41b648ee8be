"""Gist caches: cached = masked whole prompt in every family; shared, bounded, released."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.families import families
from keifu.families.llama import Llama
from keifu.families.mistral import Mistral
from keifu.families.qwen import Qwen
from keifu.families.t5 import T5
from keifu.inference.engine import Engine
from keifu.inference.gist import compress, contents, release, restored
from keifu.inference.kept import Kept
from keifu.inference.plans import Plan
from keifu.inference.request import Completion, Sampling
from keifu.inference.rules import Rules
from keifu.inference.runner import TorchRunner, step_of
from keifu.nn.gist import gisted, landmarks_of
from keifu.nn.kernels import native
from keifu.nn.masks import Gist, Landmarks, Severed
from keifu.nn.pages import OutOfState
from keifu.nn.pair import PairModule
from keifu.nn.stack import Stack, StackModule
from keifu.nn.state import StatePool
from tests.families.pair_parity import converted_pair, numbers
from tests.families.parity import DECODERS, SMALL, converted, randomise

GIST, VOCAB = 95, 96
PROMPT = [5, 17, 3, 80, 41, 22, 9, 64, 31, 2, 77, 50, 13]
REST = [8, 90, 26, 33]
CLOSE: dict[str, float] = {"atol": 1e-5, "rtol": 1e-5}
LOGPROBS = Sampling(max_tokens=6, temperature=0, logprobs=1)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models do not gain by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def with_gist(prompt: list[int], k: int) -> list[int]:
    return [*prompt, *[GIST] * k]


def refused(name: str) -> bool:
    """Families of which some mixer has no mask."""
    try:
        gisted(families[name].tiny().spec())
    except KeifuError:
        return True
    return False


ABLE = [name for name in DECODERS if not refused(name)]


def model_of(name: str, mask: Gist = Gist()) -> StackModule:
    """A family's tiny model with the mask."""
    family = families[name].tiny()
    if isinstance(family, Qwen):  # its rotary base follows the length, which a cache does not know
        family = replace(family, trained=64)
    spec = family.spec()
    assert isinstance(spec, Stack)
    made = gisted(spec, mask).build()
    assert isinstance(made, StackModule)
    made.initialise(seed=3, std=0.3)
    return made.eval()


@contextmanager
def running(model: StackModule | PairModule, **more: Any) -> Iterator[Engine]:
    if isinstance(model, PairModule):
        more = {"rules": Rules(start=(0,)), "source_vocab": VOCAB} | more
    engine = Engine(
        model, numbers(VOCAB), **{"context": 64, "budget": 1 << 22, "gist": GIST, **more}
    )
    try:
        yield engine
    finally:
        engine.close()


def test_the_families_that_can() -> None:
    needed = {"llama", "gpt-2", "mistral", "qwen2", "gemma2", "mpt", "bloom", "opt", "falcon"}
    assert needed <= set(ABLE)
    assert refused("mamba")
    assert refused("griffin")
    assert refused("rmt")
    with pytest.raises(KeifuError, match="reads on past gist tokens"):
        gisted(families["mamba"].tiny().spec())  # type: ignore[type-var]


@torch.no_grad()
def masked(model: StackModule, ids: list[int], new: int) -> tuple[list[int], Tensor]:
    """Greedy tokens of the whole prompt under the mask, uncached, and all their logits."""
    row, rows, marks = list(ids), [], landmarks_of(ids, GIST)
    for _ in range(new):
        logits = model(torch.tensor([row]), landmarks=[marks]).logits
        assert logits is not None
        rows.append(logits[0, -1])
        row.append(int(logits[0, -1].argmax()))
    return row[len(ids) :], torch.stack(rows)


@torch.no_grad()
def cached(engine: Engine, kept: Kept, tokens: list[int], runner: Any = None) -> Tensor:
    """Logits of tokens that go on from a kept past, one step for all."""
    assert kept.state is not None
    state = engine.pool.fork(kept.state)
    engine.pool.reserve(state, len(tokens))
    limit, where = kept.length + len(tokens), torch.device("cpu")
    step = step_of([state], [len(tokens)], [limit], where, None, None, (kept.landmarks,))
    runner = runner or TorchRunner(engine.model, engine.pool)
    logits: Tensor = runner.run(tokens, step, [state], range(len(tokens)))
    engine.pool.free(state)
    return logits


CASES = [(name, 2) for name in ABLE]
CASES += [(name, k) for name in ("llama", "gpt-2", "mistral") for k in (1, 5)]


@pytest.mark.parametrize(("name", "k"), CASES)
def test_a_cached_gist_equals_the_masked_whole_prompt(name: str, k: int) -> None:
    """Logits within 1e-5, the same greedy tokens, k positions held, positions kept."""
    model = model_of(name)
    whole = [*with_gist(PROMPT, k), *REST]
    said, logits = masked(model, whole, 6)
    with running(model) as engine:
        kept = compress(engine, with_gist(PROMPT, k))
        assert (kept.tokens, kept.length) == (k, len(PROMPT) + k)
        past = contents(kept).past
        assert (past.tokens, past.start, past.length) == (k, len(PROMPT), len(PROMPT) + k)
        reach = min((group.window or 99) - 1 for group in engine.pool.groups)
        assert {value.shape[0] for value in past.values.values()} <= {k, min(k, reach)}
        got = cached(engine, kept, [*REST, *said[:-1]])[len(REST) - 1 :]
        torch.testing.assert_close(got, logits, **CLOSE)
        done = engine.submit(REST, LOGPROBS, past=kept).result()
        assert list(done.tokens) == said
        assert (done.usage.prompt_tokens, done.usage.cached_tokens) == (len(REST), k)
        expected = logits.log_softmax(-1)[range(6), said]
        told = torch.tensor([t.logprob for t in done.choices[0].logprobs])
        torch.testing.assert_close(told, expected, **CLOSE)
        in_one = engine.submit(whole, LOGPROBS).result()
        assert list(in_one.tokens) == said, "a request with gist tokens in it is masked as well"


def test_the_prompt_is_known_through_the_gist_alone() -> None:
    """Another prompt with the gist's cache as it was: the same output; with its own: another."""
    model = model_of("llama")
    other = [t + 1 for t in PROMPT]
    with running(model) as engine:
        kept, theirs = (compress(engine, with_gist(p, 1)) for p in (PROMPT, other))
        before = engine.submit(REST, LOGPROBS, past=kept).result()
        release(theirs)
        theirs = compress(engine, with_gist(other, 1))
        assert engine.submit(REST, LOGPROBS, past=kept).result().tokens == before.tokens
        assert not torch.allclose(cached(engine, kept, REST), cached(engine, theirs, REST))
    severed = model_of("llama", Severed())
    at = landmarks_of(with_gist(PROMPT, 1), GIST)
    a, b = (
        severed(torch.tensor([[*with_gist(p, 1), *REST]]), landmarks=[at]).logits
        for p in (PROMPT, other)
    )
    assert a is not None
    assert b is not None
    torch.testing.assert_close(a[0, -len(REST) :], b[0, -len(REST) :])
    assert not torch.allclose(a[0, : len(PROMPT) + 1], b[0, : len(PROMPT) + 1])


@torch.no_grad()
def test_llama_equals_transformers_under_the_published_mask() -> None:
    """Their class takes a mask (batch, 1, time, time): the authors' own way to run LLaMA."""
    theirs = LlamaForCausalLM(LlamaConfig(**SMALL, attn_implementation="eager")).eval()
    randomise(theirs)
    family = Llama.from_hf(theirs.config.to_dict())
    model = gisted_like(family, theirs)
    ids = torch.tensor([[*with_gist([5, 17, 3], 2), *REST]])
    visible = torch.ones(9, 9).tril()
    visible[5:, :3] = 0
    bias = torch.where(visible.bool(), 0.0, torch.finfo(torch.float32).min)[None, None]
    expected = theirs(ids, attention_mask=bias).logits
    got = model(ids, landmarks=[Landmarks(gist=(3, 5))]).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    with running(model) as engine:
        kept = compress(engine, with_gist([5, 17, 3], 2))
        torch.testing.assert_close(
            cached(engine, kept, REST), expected[0, 5:], atol=1e-5, rtol=1e-4
        )


def gisted_like(family: Any, theirs: Any) -> Any:
    """A gisted model with their weights."""
    plain = (
        converted(family, theirs) if isinstance(family, Llama) else converted_pair(family, theirs)
    )
    model = gisted(plain.spec).build()
    model.load_state_dict(plain.state_dict())
    return model.eval()


T5_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def t5() -> tuple[PairModule, Any]:
    theirs = T5ForConditionalGeneration(T5Config(**T5_SIZES, attn_implementation="eager")).eval()
    randomise(theirs)
    return gisted_like(T5.from_hf(theirs.config.to_dict()), theirs), theirs


TARGET = [0, 7, 33, 12]


@torch.no_grad()
def test_t5_equals_transformers_under_the_published_masks(t5: tuple[PairModule, Any]) -> None:
    """The encoder's mask from both sides, and the decoder's cross mask up to the first gist."""
    model, theirs = t5
    source = torch.tensor([[*with_gist(PROMPT, 2), *REST]])
    n, total = len(PROMPT), source.shape[1]
    visible = torch.ones(total, total)
    visible[: n + 2, n + 2 :] = 0
    visible[n + 2 :, :n] = 0
    bias = torch.where(visible.bool(), 0.0, torch.finfo(torch.float32).min)[None, None]
    encoded = theirs.encoder(source, attention_mask=bias)
    cross = (torch.arange(total) >= n)[None].long()
    target = torch.tensor([TARGET])
    expected = theirs(
        encoder_outputs=encoded, attention_mask=cross, decoder_input_ids=target
    ).logits
    marks = [Landmarks(gist=(n, n + 2))]
    (memory,) = model.encode(source, landmarks=marks)
    torch.testing.assert_close(memory, encoded[0][0, n:], atol=1e-5, rtol=1e-4)
    got = model(source, target, landmarks=marks).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    plain = model(source, target).logits
    assert plain is not None
    assert not torch.allclose(plain, expected, atol=1e-2), "the masks matter"


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 2])
def test_an_encoders_cached_gist_equals_the_masked_whole(
    t5: tuple[PairModule, Any], k: int
) -> None:
    model, _ = t5
    source = [*with_gist(PROMPT, k), *REST]
    marks = landmarks_of(source, GIST)
    said: list[int] = []
    for _ in range(6):
        row = torch.tensor([[0, *said]])
        logits = model(torch.tensor([source]), row, landmarks=[marks]).logits
        assert logits is not None
        said.append(int(logits[0, -1].argmax()))
    expected = logits[0].log_softmax(-1)[range(6), said]
    with running(model) as engine:
        kept = compress(engine, with_gist(PROMPT, k))
        read = contents(kept)
        assert (kept.tokens, read.past.start, read.hidden.shape[0]) == (k, len(PROMPT), k)
        streams = [engine.submit(REST, LOGPROBS, past=kept), engine.submit(source, LOGPROBS)]
        for stream in streams:
            done = stream.result()
            assert list(done.tokens) == said
            told = torch.tensor([t.logprob for t in done.choices[0].logprobs])
            torch.testing.assert_close(told, expected, **CLOSE)
        other = compress(engine, with_gist([t + 1 for t in PROMPT], k))
        theirs = engine.submit(REST, LOGPROBS, past=other).result()
        assert [t.logprob for t in theirs.choices[0].logprobs] != told.tolist()
        with pytest.raises(ContextLengthError):
            engine.submit([2] * engine.source_context, LOGPROBS, past=kept)


def test_beams_and_several_outputs_go_on_from_a_gist() -> None:
    model = model_of("llama")
    whole = [*with_gist(PROMPT, 2), *REST]
    asked = [
        Sampling(max_tokens=5, beams=3, n=2),
        Sampling(max_tokens=5, n=3, temperature=1.5, seed=4),
        Sampling(temperature=0, ignore_eos=True),
    ]
    with running(model) as engine:
        kept = compress(engine, with_gist(PROMPT, 2))
        for sampling in asked:
            one, two = (
                engine.submit(prompt, sampling, past=past).result()
                for prompt, past in ((REST, kept), (whole, None))
            )
            assert [c.tokens for c in one.choices] == [c.tokens for c in two.choices]
        assert len(one.tokens) == engine.context - len(whole), "positions count to the context"


@pytest.mark.skipif(not native.available(), reason=native.why())
@pytest.mark.parametrize("name", ["llama", "gpt-2", "mistral", "bloom", "gemma2"])
@torch.inference_mode()
def test_a_plan_heeds_gist_tokens_and_what_is_forgotten(name: str) -> None:
    model = model_of(name)
    with running(model) as engine:
        plan = Plan(model, engine.pool, 64)
        plain = TorchRunner(model, engine.pool)
        whole = [*with_gist(PROMPT, 2), *REST]
        marks = landmarks_of(whole, GIST)
        got = []
        for runner in (plain, plan):
            state, rows = engine.pool.open(), []
            for first, end in ((0, 6), (6, 16), (16, 17), (17, 19)):
                engine.pool.reserve(state, end - first)
                step = step_of([state], [end - first], [64], torch.device("cpu"), None, None,
                               (marks,))  # fmt: skip
                assert runner.takes([end - first], [state])
                rows.append(runner.run(whole[first:end], step, [state], range(end - first)))
                engine.pool.advance(state, end - first)
            engine.pool.free(state)
            got.append(torch.cat(rows))
        torch.testing.assert_close(got[1], got[0], atol=2e-4, rtol=1e-3)
        kept = compress(engine, with_gist(PROMPT, 2))
        a, b = (cached(engine, kept, REST, runner) for runner in (plain, plan))
        torch.testing.assert_close(b, a, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(b, got[0][-len(REST) :], atol=2e-4, rtol=1e-3)


def test_first_tokens_that_stay_keep_a_forgotten_past_off_the_plan() -> None:
    spec = replace(Mistral.tiny(), window=8).spec()
    assert isinstance(spec, Stack)
    made = gisted(spec).build()
    assert isinstance(made, StackModule)
    with running(made.eval()) as engine:
        plan = Plan(made, engine.pool, 64) if native.available() else None
        kept = compress(engine, with_gist(PROMPT, 2))
        assert kept.state is not None
        assert plan is None or plan.takes([1], [kept.state])


def test_many_share_one_gist_whose_pages_come_back() -> None:
    model = model_of("llama")
    with running(model, parallel=4) as engine:
        pool = engine.pool
        whole = pool.free_tokens
        kept = compress(engine, with_gist(PROMPT, 2))
        assert whole - pool.free_tokens == pool.page, "two tokens take one page"
        alone = engine.submit(REST, LOGPROBS, past=kept).result().tokens
        streams = [engine.submit(REST, LOGPROBS, past=kept) for _ in range(9)]
        assert all(s.result().tokens == alone for s in streams)
        assert whole - pool.free_tokens == pool.page
        release(kept)
        engine.call(lambda: None)
        assert pool.free_tokens == whole
        with pytest.raises(KeifuError, match="is released: read it again"):
            engine.submit(REST, LOGPROBS, past=kept)
        release(kept)


def test_preemption_forks_the_gist_again() -> None:
    model = model_of("llama")
    each = StatePool(model.spec.entries(), budget=1 << 20).token_bytes
    with running(model, budget=each * 32 * 4, parallel=3) as engine:
        kept = compress(engine, with_gist(PROMPT, 2))
        asked = Sampling(max_tokens=40, temperature=0, ignore_eos=True)
        alone = engine.submit(REST, asked, past=kept).result().tokens
        assert len(alone) == 40
        streams = [engine.submit(REST, asked, past=kept) for _ in range(3)]
        assert [s.result().tokens for s in streams] == [alone] * 3


def test_what_cannot_be_compressed_or_continued() -> None:
    with running(model_of("llama")) as engine:
        for prompt, why in (
            (PROMPT, "ends with its gist tokens"),
            ([*with_gist(PROMPT, 1), 3], "ends with its gist tokens"),
            ([GIST, 3, GIST], "at 0 and at 2: they must stand together"),
            (with_gist([500], 1), "token id 500"),
        ):
            with pytest.raises(KeifuError, match=why):
                compress(engine, prompt)
        kept = compress(engine, with_gist(PROMPT, 1))
        with pytest.raises(KeifuError, match="gist tokens of its own"):
            engine.submit([GIST, 4], LOGPROBS, past=kept)
        with pytest.raises(ContextLengthError):
            engine.submit([4] * (64 - kept.length), LOGPROBS, past=kept)
        with running(model_of("llama")) as other, pytest.raises(KeifuError, match="of the engine"):
            other.submit(REST, LOGPROBS, past=kept)
        source = contents(kept)
    with running(model_of("llama"), context=10) as small, pytest.raises(KeifuError, match="beyond"):
        restored(small, source)
    with running(model_of("llama"), gist=None) as plain, pytest.raises(KeifuError, match="no gist"):
        compress(plain, with_gist(PROMPT, 1))
    each = StatePool(model_of("llama").spec.entries(), budget=1 << 20).token_bytes
    with running(model_of("llama"), budget=each * 32) as full:
        with pytest.raises(OutOfState, match="no room"):
            compress(full, with_gist(PROMPT, 1))
        assert full.submit(REST, LOGPROBS).result().finish == "length", "it goes on"


def test_a_gist_goes_to_another_engine_of_the_same_model() -> None:
    model = model_of("mistral")
    prompt = with_gist(PROMPT, 3)
    with running(model) as one, running(model) as two:
        kept = compress(one, prompt)
        moved = restored(two, contents(kept), kept.landmarks)
        said: list[Completion] = [
            engine.submit(REST, LOGPROBS, past=past).result()
            for engine, past in ((one, kept), (two, moved))
        ]
        assert said[0].tokens == said[1].tokens
        assert [t.logprob for t in said[0].choices[0].logprobs] == [
            t.logprob for t in said[1].choices[0].logprobs
        ]


def test_26_tokens_to_one_is_26_times() -> None:
    with running(model_of("llama")) as engine:
        prompt = [2 + i for i in range(26)]
        kept = compress(engine, with_gist(prompt, 1))
        assert (kept.length - kept.tokens) / kept.tokens == 26
        assert math.prod(next(iter(contents(kept).past.values.values())).shape) == 16
