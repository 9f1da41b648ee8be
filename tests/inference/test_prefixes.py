"""Prefixes in the engine: the same tokens after a hit, what is counted, what is not shared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from threading import Event, Thread

import pytest

from keifu.families import families
from keifu.inference.admission import PATIENCE
from keifu.inference.engine import Engine
from keifu.inference.request import Delta, Sampling
from keifu.inference.sequence import Sequence as Output
from keifu.inference.stream import Stream
from keifu.nn.rotary import DynamicNTK
from keifu.nn.stack import StackModule
from tests.inference.test_engine import FAMILY, byte_tokenizer, reference

LONG = [(7 * i * i + 3 * i) % 90 for i in range(70)]


def made(name: str) -> StackModule:
    model = families[name].tiny().spec().build()
    assert isinstance(model, StackModule)
    return model.initialise(seed=2, std=0.4).eval()


def engine_of(model: StackModule, **given: int) -> Engine:
    return Engine(model, byte_tokenizer(), **{"context": 128, "budget": 1 << 20, **given})


@pytest.fixture(params=["llama", "mistral", "gemma2", "mamba", "griffin"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = engine_of(made(str(request.param)))
    yield engine
    engine.close()


def asked(tokens: int = 8, salt: str = "") -> Sampling:
    return Sampling(max_tokens=tokens, temperature=0.0, cache_salt=salt)


def test_a_hit_gives_the_same_tokens(engine: Engine) -> None:
    """The same text again, a turn further, parted in the middle; recurrent state, too."""
    fixed, hits = bool(engine.pool.fixed), []
    window = any(g.window is not None for g in engine.pool.groups)
    done = engine.submit(LONG, asked()).result()
    said = list(done.tokens)
    assert said == reference(engine.model, LONG, 8)
    turn = [*LONG, *said, 5, 6, 7]
    for prompt in (LONG, turn, [*LONG[:40], 1, 2, 3], [*LONG[:40], 4, 5], [*LONG[:40], 6]):
        done = engine.submit(prompt, asked()).result()
        assert list(done.tokens) == reference(engine.model, prompt, 8)
        hits.append(done.usage.cached_tokens)
    if not fixed and not window:
        assert hits == [69, 77, 40, 40, 40]
    assert hits[1] == 77, "an output's own end can always be gone on from"
    assert hits[4] == 40, "where texts have parted, state is kept"
    assert engine.pool.free_tokens == engine.pool.capacity


def test_requests_that_come_together_share() -> None:
    engine = engine_of(made("llama"), parallel=4)
    prompts = [[*LONG, k] for k in range(4)]
    streams = [engine.submit(p, asked()) for p in prompts]
    done = [s.result() for s in streams]
    assert [list(d.tokens) for d in done] == [reference(engine.model, p, 8) for p in prompts]
    assert [d.usage.cached_tokens for d in done] == [0, 70, 70, 70]
    engine.close()


def test_nothing_is_shared_across_salts_or_when_off() -> None:
    engine = engine_of(made("llama"))
    for salt, expected in (("a", 0), ("b", 0), ("a", 69), ("", 0)):
        found = engine.submit(LONG, asked(salt=salt)).result()
        assert found.usage.cached_tokens == expected
    engine.close()
    off = Engine(engine.model, byte_tokenizer(), context=128, budget=1 << 20, prefixes=False)
    for _ in range(2):
        assert off.submit(LONG, asked()).result().usage.cached_tokens == 0
    assert len(off.pool.groups[0].free) == off.pool.groups[0].pages
    off.close()


def test_reports_of_the_prompt_read_all_of_it() -> None:
    engine = engine_of(made("llama"))
    engine.submit(LONG, asked()).result()
    done = engine.submit(LONG, Sampling(max_tokens=1, temperature=0.0, prompt_logprobs=1)).result()
    assert done.prompt_logprobs is not None
    assert len(done.prompt_logprobs) == len(LONG)
    assert done.usage.cached_tokens == 0
    engine.close()


def test_a_small_pool_serves_many_texts() -> None:
    """Far more texts than fit: what was read gives way, and nothing waits or fails for it."""
    model = made("llama")
    engine = engine_of(model, budget=256 * 32 * 6, parallel=2)
    for k in range(12):
        prompt = [k, *LONG[:50]]
        done = engine.submit(prompt, asked(4)).result()
        assert list(done.tokens) == reference(model, prompt, 4)
    assert len(engine.pool.groups[0].free) < engine.pool.groups[0].pages
    assert engine.pool.free_tokens == engine.pool.capacity
    engine.close()


def test_cancelling_leaves_everything_to_be_had() -> None:
    """During the prompt, in the middle of the output, and while waiting."""
    engine = engine_of(made("llama"), parallel=1)
    engine.submit(LONG, asked()).result()
    for after in (0, 1, 5):
        stream = engine.submit([*LONG, 3], asked(50))
        waiting = engine.submit([*LONG, 4], asked(50))
        waiting.cancel()
        seen = 0
        if after == 0:
            stream.cancel()
        for _ in stream:
            seen += 1
            if seen == after:
                stream.cancel()
        assert seen <= after + 3
        assert waiting.result().finish == "cancelled"
        assert engine.pool.free_tokens == engine.pool.capacity
        state = engine.call(engine.pool.open)
        engine.call(lambda s=state: engine.pool.reserve(s, engine.pool.capacity))
        engine.call(lambda s=state: engine.pool.free(s))
    engine.close()


def test_positions_scaled_by_length_share_within_one_length() -> None:
    """What a token leaves behind depends on how long its request may get: so does its key."""
    family = replace(FAMILY, scaling=DynamicNTK(factor=2.0, original=32))
    model = family.spec().build()
    assert isinstance(model, StackModule)
    engine = engine_of(model.initialise(seed=2, std=0.4).eval())
    found = [engine.submit(LONG, asked(n)).result() for n in (8, 20, 8, 20)]
    assert [d.usage.cached_tokens for d in found] == [0, 0, 69, 69]
    assert found[0].tokens == found[2].tokens
    assert found[1].tokens == found[3].tokens
    engine.close()


class Noted(Stream):
    """A stream that notes in a list when its first delta comes."""

    def __init__(self, name: str, order: list[str]) -> None:
        super().__init__()
        self._name, self._order = name, order

    def put(self, delta: Delta) -> None:
        if self._name not in self._order:
            self._order.append(self._name)
        super().put(delta)


def served(requests: Sequence[tuple[str, Sampling]], parallel: int = 1) -> list[str]:
    """In which order one engine begins requests that all wait when it comes to them."""
    engine, order = engine_of(made("llama"), parallel=parallel), list[str]()
    held, ready = Event(), Event()

    def hold() -> None:
        held.set()
        ready.wait()

    holder = Thread(target=lambda: engine.call(hold))
    holder.start()
    held.wait()
    streams = [
        engine.submit([k % 90, 5, 6], how, stream=Noted(name, order))
        for k, (name, how) in enumerate(requests)
    ]
    ready.set()
    holder.join()
    for stream in streams:
        stream.result()
    engine.close()
    return order


def turn(priority: int = 0, owner: str = "") -> Sampling:
    return Sampling(max_tokens=2, temperature=0.0, priority=priority, cache_salt=owner)


def test_lower_priority_numbers_go_first() -> None:
    asked = {"a": 0, "b": 5, "c": -1, "d": 0, "e": -1, "f": 5}
    assert "".join(served([(n, turn(p)) for n, p in asked.items()])) == "ceadbf"


def test_owners_take_turns() -> None:
    """One who sends many does not keep the others waiting, and each one's own stay in order."""
    asked = [(f"a{k}", turn(owner="a")) for k in range(6)]
    asked += [("b0", turn(owner="b")), ("b1", turn(owner="b")), ("c0", turn(owner="c"))]
    found = served(asked)
    assert found == ["a0", "b0", "c0", "a1", "b1", "a2", "a3", "a4", "a5"]


def test_nobody_starves() -> None:
    """A request that everyone may pass is served after so many others, whatever comes."""
    asked = [("last", turn(priority=9))]
    asked += [(f"{k}", turn(priority=0, owner=str(k % 3))) for k in range(PATIENCE + 20)]
    found = served(asked)
    assert found.index("last") == PATIENCE


def test_the_urgent_one_stays_where_there_is_no_room() -> None:
    """Both fit at first; the one that came first is less urgent, and gives way."""
    model = made("llama")
    engine = engine_of(model, budget=256 * 32 * 5, parallel=2)
    dropped, drop = list[int](), engine._queue.drop

    def noted(output: Output, *, store: bool = True) -> None:
        if output.finish is None:
            dropped.append(output.job.sampling.priority)
        drop(output, store=store)

    engine._queue.drop = noted  # type: ignore[method-assign]
    prompts = [[k, *LONG[:50]] for k in (1, 2)]
    streams = [
        engine.submit(p, Sampling(max_tokens=50, temperature=0.0, priority=n))
        for p, n in zip(prompts, (3, 1), strict=True)
    ]
    for prompt, stream in zip(prompts, streams, strict=True):
        assert list(stream.result().tokens) == reference(model, prompt, 50)
    assert dropped
    assert set(dropped) == {3}
    assert engine.pool.free_tokens == engine.pool.capacity
    engine.close()
