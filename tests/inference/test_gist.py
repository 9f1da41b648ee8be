"""Gist caches: cached = masked whole prompt in every family; shared, bounded, released."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.families import families
from keifu.families.llama import Llama
from keifu.families.t5 import T5
from keifu.inference.gist import compress, contents, release
from keifu.nn.gist import gisted, landmarks_of
from keifu.nn.masks import Landmarks, Severed
from keifu.nn.pair import PairModule
from tests.families.pair_parity import converted_pair
from tests.families.parity import SMALL, converted, randomise
from tests.inference.gists import (
    ABLE,
    CLOSE,
    GIST,
    LOGPROBS,
    PROMPT,
    REST,
    VOCAB,
    cached,
    masked,
    model_of,
    refused,
    running,
    with_gist,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_families_that_can() -> None:
    needed = {"llama", "gpt-2", "mistral", "qwen2", "gemma2", "mpt", "bloom", "opt", "falcon"}
    assert needed <= set(ABLE)
    assert refused("mamba")
    assert refused("griffin")
    assert refused("rmt")
    with pytest.raises(KeifuError, match="reads on past gist tokens"):
        gisted(families["mamba"].tiny().spec())  # type: ignore[type-var]


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
