"""Models whose state never grows, in the engine: batched as alone, slots, flat cost of a token."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from keifu.families import families
from keifu.families.mamba2 import Mamba2Family
from keifu.inference.engine import Engine
from keifu.inference.plans import runners
from keifu.inference.request import Sampling
from keifu.inference.runner import step_of
from keifu.nn.stack import StackModule
from keifu.nn.state import Fixed, RequestState, StatePool
from tests.inference.test_engine import byte_tokenizer, reference

NAMES = ("mamba", "falcon-mamba", "mamba2", "s4", "rmt")


def made(name: str) -> StackModule:
    model = families[name].tiny().spec().build()
    assert isinstance(model, StackModule)
    return model.initialise(seed=2, std=0.4).eval()


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> StackModule:
    return made(str(request.param))


def test_nothing_of_the_state_grows(model: StackModule) -> None:
    assert all(isinstance(e, Fixed) for use in model.spec.entries() for e in use.values())
    pool = StatePool(model.spec.entries(), budget=1 << 20, slots=2)
    assert pool.token_bytes == 0
    assert pool.cost(pool.open(), 10**9) == 0


@pytest.mark.parametrize("fast", [False, True])
def test_requests_of_different_lengths_run_together_as_alone(
    model: StackModule, fast: bool
) -> None:
    """More requests than slots, prompts of one token and of many, some cut into chunks."""
    given = runners if fast else None
    engine = Engine(model, byte_tokenizer(), context=96, parallel=3, budget=1 << 20, runners=given)
    prompts = [list(range(3, 3 + k)) for k in (1, 5, 9, 60, 2, 17)]
    asked = Sampling(max_tokens=10, temperature=0.0)
    streams = [engine.submit(p, asked) for p in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        assert list(stream.result().tokens) == reference(model, prompt, 10)
    engine.close()


def test_several_choices_fork_one_past(model: StackModule) -> None:
    engine = Engine(model, byte_tokenizer(), context=96, parallel=4, budget=1 << 20)
    both = engine.submit([4, 5, 6], Sampling(max_tokens=8, seed=3, n=2)).result()
    again = engine.submit([4, 5, 6], Sampling(max_tokens=8, seed=3, n=2)).result()
    assert [c.tokens for c in both.choices] == [c.tokens for c in again.choices]
    assert both.choices[0].tokens != both.choices[1].tokens
    engine.close()


WINDOW, AT = 512, (4096, 16384, 65536)


@torch.no_grad()
def fed(model: StackModule, pool: StatePool, state: RequestState, count: int, at_once: int) -> None:
    """`count` more tokens."""
    ids = torch.arange(count) % 90
    for part in ids.split(at_once):
        step = step_of([state], [len(part)], [state.length + len(part)], torch.device("cpu"))
        handles = pool.handles([state], [len(part)])
        model.run(part, step, handles, select=torch.tensor([0]))
        pool.advance(state, len(part))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_token_costs_the_same_after_64k_tokens(name: str) -> None:
    """Means over whole windows within 15 %; the lengths take turns, so that noise is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    family = families[name].tiny()
    sized = replace(family, chunk=256) if isinstance(family, Mamba2Family) else family
    model = sized.spec().build()
    assert isinstance(model, StackModule)
    model.initialise(seed=2, std=0.4).eval()
    pool = StatePool(model.spec.entries(), budget=1 << 20, slots=4)
    state, past = pool.open(), {}
    for length in AT:
        fed(model, pool, state, length - state.length, 4096)
        past[length] = pool.fork(state)
    held = sum(t.nbytes for t in pool.fixed.values())
    taken: dict[int, list[float]] = {n: [] for n in AT}
    for _ in range(7):
        for length in AT:
            began = time.process_time()
            fed(model, pool, past[length], WINDOW, 1)
            taken[length].append(time.process_time() - began)
    assert sum(t.nbytes for t in pool.fixed.values()) == held
    best = [min(taken[length]) for length in AT]
    assert max(best) < 1.15 * min(best), best
    torch.set_num_threads(threads)
