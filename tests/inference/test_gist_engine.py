"""Gist caches among other requests: plans, beams, shared pages, preemption, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.families.mistral import Mistral
from keifu.inference.gist import compress, contents, release, restored
from keifu.inference.plans import Plan
from keifu.inference.request import Completion, Sampling
from keifu.inference.runner import Feed, TorchRunner
from keifu.nn.gist import landmarks_of
from keifu.nn.kernels import native
from keifu.nn.masks import Causal, Window
from keifu.nn.pages import OutOfState
from keifu.nn.past import forget
from keifu.nn.stack import Stack, StackModule
from keifu.nn.state import StatePool
from tests.inference.gists import (
    GIST,
    LOGPROBS,
    PROMPT,
    REST,
    cached,
    model_of,
    running,
    with_gist,
)

pytestmark = pytest.mark.usefixtures("one_thread")


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
                feed = Feed(
                    ids=whole[first:end],
                    states=[state],
                    lengths=[end - first],
                    limits=[64],
                    landmarks=(marks,),
                )
                assert runner.takes([end - first], [state])
                rows.append(runner.run(feed, range(end - first)).clone())
                engine.pool.advance(state, end - first)
            engine.pool.free(state)
            got.append(torch.cat(rows))
        torch.testing.assert_close(got[1], got[0], atol=2e-4, rtol=1e-3)
        kept = compress(engine, with_gist(PROMPT, 2))
        a, b = (cached(engine, kept, REST, runner) for runner in (plain, plan))
        torch.testing.assert_close(b, a, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(b, got[0][-len(REST) :], atol=2e-4, rtol=1e-3)


@pytest.mark.skipif(not native.available(), reason=native.why())
@torch.inference_mode()
def test_where_first_tokens_stay_a_forgotten_past_is_off_the_plan() -> None:
    """The kernel finds first tokens at a request's first places, which forgetting fills anew."""
    spec = Mistral.tiny().spec()
    assert isinstance(spec, Stack)
    mixer = vars(spec.blocks[0])["mixer"]
    kept = replace(spec.blocks[0], mixer=replace(mixer, mask=Causal() & Window(8, keep=2)))
    made = replace(spec, blocks=(kept,) * len(spec.blocks)).build()
    assert isinstance(made, StackModule)
    made.initialise(seed=3, std=0.3)
    pool = StatePool(made.spec.entries(), budget=1 << 20, page=4)
    plan, state = Plan(made.eval(), pool, 64), pool.open()
    pool.reserve(state, 12)
    plan.run(Feed(ids=range(12), states=[state], lengths=[12], limits=[64]), [11])
    pool.advance(state, 12)
    assert plan.takes([1], [state])
    forget(pool, state, 9)
    assert not plan.takes([1], [state])


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
