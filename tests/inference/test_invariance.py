"""The same request among others: bit-equal where that is asked for, the same tokens by default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import keifu
from keifu.inference.chunks import Chunks
from keifu.inference.engine import Engine
from keifu.inference.plans import runners
from keifu.inference.request import Completion, Sampling
from keifu.lm.local import LocalLM
from tests.inference.test_engine import byte_tokenizer
from tests.inference.test_prefixes import made

PROMPT = [(5 * i * i + 11 * i) % 90 for i in range(150)]
ASKED = Sampling(max_tokens=40, temperature=0.0, logprobs=2)
LONG = Sampling(max_tokens=60, temperature=0.0)


def bits(done: Completion) -> list[tuple[int, float | None, float | None]]:
    return [(t.id, t.logprob, t.top[1].logprob) for t in done.choices[0].logprobs]


def ways(engine: Engine, tight: Engine) -> Mapping[str, Completion]:
    """One request alone, again, among others, after others that begin like it, and preempted."""
    found = {"alone": engine.submit(PROMPT, ASKED).result()}
    found["again"] = engine.submit(PROMPT, ASKED).result()
    engine.call(engine.prefixes.clear)
    others = [engine.submit([*PROMPT[:k], k % 90], LONG) for k in (1, 20, 149)]
    found["among"] = engine.submit(PROMPT, ASKED).result()
    found["after"] = engine.submit(PROMPT, ASKED).result()
    turn = [*PROMPT, *found["alone"].tokens, 3, 4]
    for stream in others:
        stream.result()
    found["turn"] = engine.submit(turn, ASKED).result()
    engine.call(engine.prefixes.clear)
    found["turn afresh"] = engine.submit(turn, ASKED).result()
    first = tight.submit([8, *PROMPT[:100]], LONG)
    found["preempted"] = tight.submit(PROMPT, ASKED).result()
    first.result()
    return found


@pytest.mark.parametrize(
    ("name", "dtype", "fast"),
    [
        ("llama", torch.float32, False),
        ("llama", torch.bfloat16, False),
        ("llama", torch.bfloat16, True),
        ("llama", torch.int8, True),
        ("mistral", torch.float32, False),
        ("mamba", torch.float32, False),
        ("griffin", torch.float32, False),
    ],
)
def test_deterministic_is_equal_to_the_last_bit(name: str, dtype: torch.dtype, fast: bool) -> None:
    model = made(name)
    given: dict[str, Any] = {
        "context": 256, "state": dtype, "runners": runners if fast else None, "parallel": 4,
        "dtype": torch.bfloat16 if dtype == torch.int8 else dtype,
    }  # fmt: skip
    engine = Engine(model, byte_tokenizer(), budget=1 << 22, deterministic=True, **given)
    each = max(engine.pool.token_bytes, 1)
    fixed = sum(t.nbytes for t in engine.pool.fixed.values())
    room = fixed + each * 32 * 9 + 1
    tight = Engine(model, byte_tokenizer(), budget=room, deterministic=True, **given)
    dropped: list[object] = []
    drop = tight._queue.drop
    tight._queue.drop = lambda o, **k: (dropped.append(o), drop(o, **k))[1]  # type: ignore[method-assign]
    found = ways(engine, tight)
    for way in ("again", "among", "after", "preempted"):
        assert bits(found[way]) == bits(found["alone"]), way
    assert bits(found["turn"]) == bits(found["turn afresh"])
    if each > 1 and name == "llama":
        assert len(dropped) > 2, "somebody was preempted"
        assert found["again"].usage.cached_tokens == 128
        assert found["turn"].usage.cached_tokens == 128
    engine.close()
    tight.close()


def test_the_default_model_to_the_last_bit(smollm2: Path) -> None:
    lm = keifu.load(str(smollm2), ctx=256, deterministic=True)
    text = "The quick brown fox jumps over the lazy dog. " * 8
    asked: dict[str, Any] = {"max_tokens": 6, "temperature": 0.0, "logprobs": 2}
    alone = lm.complete(text, **asked)
    again = lm.complete(text, **asked)
    others = [lm.complete_stream(text[: 40 * k], **asked) for k in (1, 5)]
    among = lm.complete(text, cache_salt="another", **asked)
    for stream in others:
        stream.result()
    lm.close()
    assert again.usage.cached_tokens == 64
    assert among.usage.cached_tokens == 0
    assert bits(again) == bits(alone) == bits(among)


CLEAR = 0.1


def test_the_default_model_by_default(smollm2: Path) -> None:
    """Equal tokens up to the first whose two best are nearer than 0.1 to each other."""
    lm = keifu.load(str(smollm2), ctx=256)
    assert isinstance(lm, LocalLM)
    text = "Once upon a time, in a village by the sea, there lived an old woman who " * 5
    asked: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0, "logprobs": 2}
    alone = lm.complete(text, **asked)
    others = [lm.complete_stream(text[: 50 * k], **asked) for k in (1, 2, 3)]
    found = [lm.complete(text, **asked)]
    found.append(lm.complete(text, cache_salt="another", **asked))
    assert found[0].usage.cached_tokens == found[0].usage.prompt_tokens - 1
    for stream in others:
        stream.result()
    lm.engine._chunks = Chunks(deterministic=False, most=24)
    found.append(lm.complete(text, cache_salt="in chunks", **asked))
    assert found[-1].usage.cached_tokens == 0
    lm.close()
    compared = 0
    for done in found:
        for mine, theirs in zip(bits(alone), bits(done), strict=False):
            if mine[0] != theirs[0]:
                assert abs((mine[1] or 0) - (mine[2] or 0)) <= CLEAR
                break
            compared += 1
    assert compared > 9
