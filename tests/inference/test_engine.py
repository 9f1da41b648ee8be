"""The engine on a tiny random model: batching, limits, reports, beams, cancellation, faults."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Rust
from tokenizers import decoders, models, pre_tokenizers

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.families.llama import Llama
from keifu.inference.engine import Engine
from keifu.inference.request import Sampling
from keifu.inference.runner import Feed, TorchRunner
from keifu.inference.sequence import TAIL
from keifu.nn.stack import StackModule
from keifu.nn.state import RequestState
from keifu.text.tokenizer import Tokenizer

FAMILY = Llama.tiny()
VOCAB = FAMILY.vocab


def byte_tokenizer() -> Tokenizer:
    """One token a byte for the first ids: text is whatever bytes the ids are."""
    chars = sorted(pre_tokenizers.ByteLevel.alphabet())[:VOCAB]
    rust = Rust(models.BPE({c: i for i, c in enumerate(chars)}, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.decoder = decoders.ByteLevel()
    return Tokenizer(rust)


@pytest.fixture(scope="module")
def model() -> StackModule:
    made = FAMILY.spec().build()
    assert isinstance(made, StackModule)
    return made.initialise(seed=0, std=0.5).eval()


@pytest.fixture
def engine(model: StackModule) -> Iterator[Engine]:
    made = Engine(model, byte_tokenizer(), context=64, parallel=3, budget=1 << 20)
    yield made
    made.close()


@torch.no_grad()
def reference(model: StackModule, prompt: list[int], new: int) -> list[int]:
    ids = list(prompt)
    for _ in range(new):
        logits = model(torch.tensor([ids])).logits
        assert logits is not None
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


GREEDY: dict[str, Any] = {"temperature": 0.0}


def test_requests_of_different_lengths_run_together_as_alone(
    engine: Engine, model: StackModule
) -> None:
    prompts = [list(range(3, 3 + k)) for k in (1, 5, 9, 20, 2)]
    streams = [engine.submit(p, Sampling(max_tokens=10, **GREEDY)) for p in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        done = stream.result()
        assert list(done.tokens) == reference(model, prompt, 10)
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(prompt), 10)
        assert done.finish == "length"
    assert engine.pool.free_tokens == engine.pool.capacity


def test_a_seed_gives_the_same_output_whatever_else_runs(engine: Engine) -> None:
    asked = Sampling(max_tokens=12, seed=11, n=2)
    alone = engine.submit([1, 2, 3], asked).result()
    others = [engine.submit([4, 5], Sampling(max_tokens=20, seed=s)) for s in range(4)]
    among = engine.submit([1, 2, 3], asked).result()
    assert [c.tokens for c in among.choices] == [c.tokens for c in alone.choices]
    assert alone.choices[0].tokens != alone.choices[1].tokens
    for other in others:
        other.result()


def test_a_full_pool_preempts_and_recomputes(model: StackModule) -> None:
    tight = Engine(model, byte_tokenizer(), context=64, parallel=4, budget=80 * 256 * 2)
    assert tight.pool.capacity < 4 * 50
    prompts = [list(range(3, 3 + k)) for k in (5, 9, 20, 11)]
    streams = [tight.submit(p, Sampling(max_tokens=30, **GREEDY)) for p in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        assert list(stream.result().tokens) == reference(model, prompt, 30)
    assert tight.pool.free_tokens == tight.pool.capacity
    tight.close()


@torch.no_grad()
def test_log_probabilities_are_the_models(engine: Engine, model: StackModule) -> None:
    prompt = [7, 3, 60, 22]
    asked = Sampling(max_tokens=5, logprobs=2, prompt_logprobs=3, **GREEDY)
    done = engine.submit(prompt, asked).result()
    ids = [*prompt, *done.tokens]
    logits = model(torch.tensor([ids])).logits
    assert logits is not None
    log = logits[0].log_softmax(-1)
    told = done.prompt_logprobs
    assert told is not None
    assert told[0].logprob is None
    said = [*told[1:], *done.choices[0].logprobs]
    for position, report in enumerate(said):
        assert report.id == ids[position + 1]
        assert report.logprob == pytest.approx(float(log[position, report.id]), abs=1e-4)
        best = log[position].topk(len(report.top)).indices.tolist()
        assert [t.id for t in report.top] == best
    assert len(told[1].top) == 3
    assert len(done.choices[0].logprobs[0].top) == 2


def test_ends(engine: Engine, model: StackModule) -> None:
    free = reference(model, [1, 2, 3], 12)
    text = engine.tokenizer.decode(free)
    engine.end_ids = frozenset({free[4]})
    first = free.index(free[4])
    done = engine.submit([1, 2, 3], Sampling(max_tokens=12, **GREEDY)).result()
    assert list(done.tokens) == free[: first + 1]
    assert (done.finish, done.choices[0].stop) == ("stop", free[4])
    on = engine.submit([1, 2, 3], Sampling(max_tokens=12, ignore_eos=True, **GREEDY)).result()
    assert list(on.tokens) == free
    engine.end_ids = frozenset()
    stop = text[5:7]
    cut = engine.submit([1, 2, 3], Sampling(max_tokens=12, stop=(stop,), **GREEDY)).result()
    assert cut.text == text[: text.index(stop)]
    assert cut.finish == "stop"
    kept = Sampling(max_tokens=12, stop=(stop,), include_stop=True, **GREEDY)
    assert engine.submit([1, 2, 3], kept).result().text == text[: text.index(stop) + 2]
    late = Sampling(max_tokens=12, stop_ids=(free[0],), min_tokens=3, **GREEDY)
    assert engine.submit([1, 2, 3], late).result().usage.completion_tokens >= 3


def test_beams_equal_transformers(engine: Engine, model: StackModule, tmp_path: Any) -> None:
    from transformers import LlamaForCausalLM

    from tests.families.parity import export

    theirs = LlamaForCausalLM.from_pretrained(export(FAMILY, model, tmp_path / "m")).eval()
    theirs.generation_config.eos_token_id = 17
    engine.end_ids = frozenset({17})
    for prompt in ([1, 2, 3], [50, 4], [9, 8, 7, 6]):
        for beams, penalty in ((3, 1.0), (4, 0.5), (2, 2.0)):
            ids = torch.tensor([prompt])
            said = theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                num_beams=beams,
                max_new_tokens=9,
                length_penalty=penalty,
                do_sample=False,
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
            asked = Sampling(max_tokens=9, beams=beams, length_penalty=penalty)
            ours = list(engine.submit(prompt, asked).result().tokens)
            assert ours == said[: len(ours)]
            assert all(t in (0, 17) for t in said[len(ours) :])
    assert engine.pool.free_tokens == engine.pool.capacity


def test_cancelling_frees_within_a_step(engine: Engine) -> None:
    stream = engine.submit([1, 2, 3], Sampling(max_tokens=60))
    seen = 0
    for delta in stream:  # noqa: B007 (the last one is looked at)
        seen += 1
        if seen == 3:
            stream.cancel()
    assert delta.finish == "cancelled"
    assert seen < 10
    assert engine.pool.free_tokens == engine.pool.capacity
    waiting = [engine.submit([1, 2, 3], Sampling(max_tokens=50)) for _ in range(5)]
    waiting[-1].cancel()
    assert waiting[-1].result().finish == "cancelled"


def test_refusals(engine: Engine) -> None:
    with pytest.raises(ContextLengthError, match="64"):
        engine.submit(list(range(60)) + [1] * 4, Sampling())
    with pytest.raises(ContextLengthError):
        engine.submit([1] * 60, Sampling(max_tokens=5))
    with pytest.raises(KeifuError, match="no tokens"):
        engine.submit([], Sampling())
    with pytest.raises(KeifuError, match="vocabulary"):
        engine.submit([VOCAB], Sampling())
    assert engine.submit([1] * 59, Sampling(max_tokens=5, **GREEDY)).result().finish == "length"


def test_a_fault_in_one_request_leaves_the_others(engine: Engine, model: StackModule) -> None:
    real = engine.runners[-1].run

    def faulty(feed: Feed, select: Sequence[int]) -> torch.Tensor:
        if 42 in feed.ids:
            raise RuntimeError("planted")
        return real(feed, select)

    engine.runners[-1].run = faulty  # type: ignore[method-assign]
    bad = engine.submit([1, 42], Sampling(max_tokens=5, **GREEDY))
    good = engine.submit([1, 2, 3], Sampling(max_tokens=5, ignore_eos=True, **GREEDY))
    with pytest.raises(RuntimeError, match="planted"):
        bad.result()
    expected = reference(model, [1, 2, 3], 5)
    if 42 not in expected:
        assert list(good.result().tokens) == expected
    engine.runners[-1].run = real  # type: ignore[method-assign]
    after = engine.submit([1, 2, 3], Sampling(max_tokens=5, **GREEDY)).result()
    assert list(after.tokens) == expected
    assert engine.pool.free_tokens == engine.pool.capacity


def test_async_readers(engine: Engine, model: StackModule) -> None:
    async def both() -> list[list[int]]:
        streams = [
            engine.submit([k, 2, 3], Sampling(max_tokens=6, **GREEDY)).aresult() for k in (1, 9)
        ]
        return [list(done.tokens) for done in await asyncio.gather(*streams)]

    assert asyncio.run(both()) == [reference(model, [k, 2, 3], 6) for k in (1, 9)]


@torch.no_grad()
def test_embeddings_are_mean_hidden_states(engine: Engine, model: StackModule) -> None:
    vectors = engine.embed([[1, 2, 3], [4, 5]])
    expected = model(torch.tensor([4, 5])).hidden.mean(0)
    torch.testing.assert_close(vectors[1], expected, atol=1e-5, rtol=1e-5)


def test_closing_ends_what_runs(model: StackModule) -> None:
    made = Engine(model, byte_tokenizer(), context=64, budget=1 << 20)
    stream = made.submit([1, 2, 3], Sampling(max_tokens=55))
    made.close()
    assert stream.result().finish in ("cancelled", "length")
    with pytest.raises(KeifuError, match="closed"):
        made.submit([1], Sampling())


class Recorder:
    """A runner that notes what it was told may be coarse."""

    def __init__(self, inner: TorchRunner) -> None:
        self.inner, self.seen = inner, list[tuple[int, ...]]()

    def takes(self, lengths: Sequence[int], states: Sequence[RequestState]) -> bool:
        return self.inner.takes(lengths, states)

    def run(self, feed: Feed, select: Sequence[int]) -> torch.Tensor:
        self.seen.append(feed.coarse)
        return self.inner.run(feed, select)


def test_a_prompts_end_its_output_and_what_is_scored_are_never_coarse(engine: Engine) -> None:
    recorder = Recorder(TorchRunner(engine.model, engine.pool))
    engine.runners = [recorder]
    prompt = [3] * (TAIL + 8)
    engine.submit(prompt, Sampling(max_tokens=2, **GREEDY)).result()
    assert recorder.seen == [(8,), (8,)]
    recorder.seen.clear()
    engine.submit(prompt, Sampling(max_tokens=1, prompt_logprobs=0, **GREEDY)).result()
    engine.submit(prompt[:TAIL], Sampling(max_tokens=1, **GREEDY)).result()
    assert set(recorder.seen) == {(0,)}
