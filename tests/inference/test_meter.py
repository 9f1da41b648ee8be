"""What an engine counts: exact whatever happens to a request on its way."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from keifu.families.griffin import Griffin
from keifu.families.llama import Llama
from keifu.inference.engine import Engine
from keifu.inference.request import Sampling
from keifu.nn.stack import StackModule
from tests.inference.test_engine import byte_tokenizer

GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}


def built(family: Any) -> StackModule:
    made = family.tiny().spec().build()
    assert isinstance(made, StackModule)
    return made.initialise(seed=0, std=0.5).eval()


@pytest.fixture(scope="module")
def model() -> StackModule:
    return built(Llama)


@pytest.fixture
def engine(model: StackModule) -> Iterator[Engine]:
    made = Engine(model, byte_tokenizer(), context=64, parallel=3, budget=1 << 20)
    yield made
    made.close()


def test_a_request_that_gave_way_is_counted_once(model: StackModule) -> None:
    """Three pages for two requests that want two each: one has to begin again."""
    page = 32 * 2 * 2 * 2 * 8 * 4
    small = Engine(model, byte_tokenizer(), context=64, parallel=2, budget=3 * page)
    prompts = [list(range(3, 23)), list(range(30, 50))]
    streams = [small.submit(p, Sampling(max_tokens=40, **GREEDY)) for p in prompts]
    assert [len(s.result().tokens) for s in streams] == [40, 40]
    found = small.statistics()
    small.close()
    meter = found.meter
    assert meter.preempted >= 1
    assert (meter.prompt, meter.generated) == (40, 80)
    assert meter.gaps.count == 80 - 2
    assert meter.sought == 38
    assert (found.running, found.waiting, found.used, found.pages) == (0, 0, 0.0, 3)


def test_it_can_be_sent_to_another_process(engine: Engine) -> None:
    engine.submit([3, 4, 5], Sampling(max_tokens=5, **GREEDY)).result()
    mine = engine.statistics()
    other = pickle.loads(pickle.dumps(mine))
    assert other.meter.steps.counts == mine.meter.steps.counts
    assert other.meter.gaps.bounds == mine.meter.gaps.bounds
    assert (other.meter.generated, other.pages, other.dtype) == (5, mine.pages, "float32")


def test_searches_and_scores(engine: Engine) -> None:
    search = Sampling(max_tokens=5, beams=3, n=2, **GREEDY)
    done = engine.submit([3, 4, 5], search).result()
    meter = engine.statistics().meter
    assert meter.prompt == 3
    assert meter.generated == sum(len(choice.tokens) for choice in done.choices) == 10
    assert meter.gaps.count == 0  # nothing is sent before the end
    assert meter.sought == 0  # searches share nothing
    engine.submit([3, 4, 5, 6], Sampling(max_tokens=0, prompt_logprobs=1)).result()
    assert (meter.prompt, meter.generated) == (7, 10)
    steps = meter.steps
    assert steps.total == 2 + 1 + 4 * 3 + 4  # a prompt, its end, three beams at a time, a score


def test_what_is_cancelled_unread_is_no_prompt(engine: Engine) -> None:
    go = threading.Event()
    held = threading.Thread(target=lambda: engine.call(go.wait))
    held.start()
    stream = engine.submit([3] * 30, Sampling(max_tokens=5))
    stream.cancel()
    assert engine.statistics().waiting == 1  # any thread may ask, even while a step takes long
    go.set()
    held.join()
    assert stream.result().finish == "cancelled"
    meter = engine.statistics().meter
    assert (meter.prompt, meter.generated, meter.sought) == (0, 0, 0)


def test_recurrent_state_is_used_by_requests() -> None:
    """Griffin's state is a slot and a window: the fuller one counts."""
    engine = Engine(built(Griffin), byte_tokenizer(), context=64, parallel=2, budget=1 << 22)
    seen: list[float] = []
    stream = engine.submit([3, 4, 5], Sampling(max_tokens=30, **GREEDY))
    for _ in stream:
        seen.append(engine.statistics().used)
    assert max(seen) >= 0.015  # one of parallel + 64 slots
    after = engine.call(engine.statistics)
    engine.close()
    assert after.used == 0
