"""Strides: several steps at once give what single ones give, and end where somebody has to look."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from keifu.families import families
from keifu.inference import plans, striding
from keifu.inference.engine import Engine
from keifu.inference.request import Sampling
from keifu.inference.runner import Feed, Stride
from keifu.nn.kernels import native
from keifu.nn.pages import OutOfState
from keifu.nn.stack import StackModule
from tests.inference.test_engine import byte_tokenizer

pytestmark = pytest.mark.skipif(not native.available(), reason="no native kernels")


def made_of(family: Any) -> StackModule:
    made = family.tiny().spec().build()
    assert isinstance(made, StackModule)
    return made.initialise(seed=0, std=0.5).eval()


@pytest.fixture(scope="module", params=["llama", "mamba"])
def model(request: pytest.FixtureRequest) -> StackModule:
    return made_of(families[request.param])


@pytest.fixture
def engine(model: StackModule) -> Iterator[Engine]:
    made = Engine(
        model, byte_tokenizer(), context=96, parallel=4, budget=1 << 20, runners=plans.runners
    )
    assert made.why_plain == ""
    yield made
    made.close()


class Watched:
    """The strides that a plan takes, and what happens in between."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[int] = []
        plan: Any = engine.runners[0]
        real = plan.stride

        def stride(feed: Feed, how: Stride) -> Sequence[Sequence[int]]:
            made: Sequence[Sequence[int]] = real(feed, how)
            self.taken.append(len(made))
            return made

        monkeypatch.setattr(plan, "stride", stride)


def asked(seed: int) -> list[tuple[list[int], Sampling]]:
    """Requests of all kinds, such that strides do not suit among them."""
    draw = random.Random(seed)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1.0, "seed": 3},
        {"temperature": 1.5, "top_p": 0.9, "seed": 4},
        {"temperature": 1.0, "top_k": 5, "min_p": 0.05, "seed": 5},
        {"temperature": 0, "stop_ids": (7, 9, 30)},
        {"temperature": 1.0, "seed": 6, "min_tokens": 9, "stop_ids": (7, 9, 30)},
    ]
    return [
        (
            [draw.randrange(3, 60) for _ in range(draw.randint(1, 20))],
            Sampling(max_tokens=draw.randint(2, 40), **kinds[i % len(kinds)]),
        )
        for i in range(12)
    ]


def test_same_tokens_as_single_steps(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(engine, monkeypatch)
    requests = asked(1)
    together = [s.result() for s in [engine.submit(p, how) for p, how in requests]]
    assert 1 < max(watched.taken) <= striding.MOST  # fewer where the machine is slow
    with monkeypatch.context() as single:
        single.setattr(striding, "MOST", 1)
        watched.taken.clear()
        alone = [engine.submit(p, how).result() for p, how in requests]
        assert not watched.taken
    for mine, theirs in zip(together, alone, strict=True):
        assert mine.tokens == theirs.tokens
        assert (mine.finish, mine.text) == (theirs.finish, theirs.text)
        assert mine.usage.completion_tokens == theirs.usage.completion_tokens
    assert {done.finish for done in together} == {"stop", "length"}
    engine.call(engine.prefixes.clear)
    assert engine.pool.used == 0


@pytest.mark.parametrize(
    "asks", [{"logprobs": 1}, {"stop": ("zzz",)}, {"typical_p": 0.9}, {"repetition_penalty": 1.2}]
)
def test_not_where_others_have_a_say(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, asks: dict[str, Any]
) -> None:
    watched = Watched(engine, monkeypatch)
    done = engine.submit([5, 6, 7], Sampling(max_tokens=12, seed=1, **asks)).result()
    assert len(done.tokens) == 12
    assert not watched.taken


def test_ends_for_whoever_comes_or_leaves(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stride is told to hurry: it ends with its first step, and the others are looked after."""
    plan: Any = engine.runners[0]
    real, running, go_on = plan.stride, threading.Event(), threading.Event()
    steps: list[int] = []

    def stride(feed: Feed, how: Stride) -> Sequence[Sequence[int]]:
        if not steps:
            running.set()
            assert go_on.wait(20)
        made: Sequence[Sequence[int]] = real(feed, how)
        steps.append(len(made))
        return made

    monkeypatch.setattr(plan, "stride", stride)
    first = engine.submit([5, 6, 7], Sampling(max_tokens=60, temperature=0))
    assert running.wait(20)
    second = engine.submit([8, 9], Sampling(max_tokens=2, temperature=0))
    go_on.set()
    assert len(second.result().tokens) == 2
    assert steps[0] == 1
    first.cancel()
    assert first.result().finish == "cancelled"


def test_no_stride_without_room(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that run out mean single steps, not an error."""
    watched = Watched(engine, monkeypatch)
    real = engine.pool.reserve

    def reserve(state: Any, tokens: int) -> None:
        if tokens > 1 and state.length >= 3:
            raise OutOfState("none left")
        real(state, tokens)

    monkeypatch.setattr(engine.pool, "reserve", reserve)
    done = engine.submit([5, 6, 7], Sampling(max_tokens=9, temperature=0)).result()
    assert len(done.tokens) == 9
    assert not watched.taken


def test_damaged_weights_are_the_requests_error(engine: Engine) -> None:
    """Logits that are no numbers end a stride, and the request with one line."""
    head: Any = engine.model.norm
    assert len(engine.submit([5, 6], Sampling(max_tokens=4, temperature=0)).result().tokens) == 4
    before = head.weight.detach().clone()
    try:
        head.weight.data.fill_(float("nan"))
        plan = plans.Plan(engine.model, engine.pool, engine.context)
        engine.runners[0] = plan
        with pytest.raises(Exception, match="not numbers"):
            engine.submit([5, 6], Sampling(max_tokens=4, temperature=0)).result()
    finally:
        head.weight.data.copy_(before)
