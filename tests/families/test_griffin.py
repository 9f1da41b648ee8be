"""Griffin against transformers' RecurrentGemma, and Hawk: the same with recurrences alone."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from keifu.core.errors import ConfigError
from keifu.families.griffin import Griffin
from keifu.inference.engine import Engine
from keifu.inference.plans import runners
from keifu.inference.request import Sampling
from keifu.inference.runner import Feed, TorchRunner, step_of
from keifu.nn.part import count
from keifu.nn.stack import StackModule
from keifu.nn.state import Fixed, PerToken, StatePool, state_bytes
from tests.families.parity import both_ways, converted, greedy, randomise, tokens
from tests.inference.test_engine import byte_tokenizer, reference

SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "attention_window_size": 5,
}  # fmt: skip


@pytest.mark.parametrize(
    "option",
    [
        {},
        {"num_key_value_heads": 1, "lru_width": 40},
        {"block_types": ["attention", "recurrent"], "attention_bias": True},
        {"logits_soft_cap": 2.0, "conv1d_width": 3, "hidden_activation": "silu"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0,
                             "partial_rotary_factor": 0.25}, "hidden_size": 64},
    ],
    ids=str,
)  # fmt: skip
def test_parity(option: dict[str, Any], tmp_path: Path) -> None:
    theirs = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**{**SMALL, **option}))
    both_ways(Griffin, theirs, tmp_path / "m")


@torch.no_grad()
@pytest.mark.parametrize("planned", [True, False], ids=["plan", "parts"])
def test_each_token_read_alone_is_theirs(planned: bool) -> None:
    """Sixty-four tokens, far beyond the window of 5, against their whole and their cached forward.

    Their cache is passed in: RecurrentGemma returns none, and without one it starts anew each time.
    """
    config = RecurrentGemmaConfig(**SMALL, num_key_value_heads=1, logits_soft_cap=4.0)
    theirs = RecurrentGemmaForCausalLM(config).eval()
    randomise(theirs)
    family = Griffin.from_hf(json.loads(config.to_json_string(use_diff=False)))
    ours = converted(family, theirs)
    pool = StatePool(ours.spec.entries(), budget=1 << 22, slots=1)
    fast, _ = runners(ours, pool, 96)
    assert fast or not planned
    runner = fast[0] if planned else TorchRunner(ours, pool)
    ids = torch.randint(96, (1, 64), generator=torch.Generator().manual_seed(5))
    whole = theirs(ids, use_cache=False).logits[0]
    state, cache = pool.open(), DynamicCache(config=config)
    for at, token in enumerate(ids[0].tolist()):
        pool.reserve(state, 1)
        feed = Feed(ids=[token], states=[state], lengths=[1], limits=[96])
        logits = runner.run(feed, [0])[0]
        pool.advance(state, 1)
        alone = theirs(ids[:, at : at + 1], past_key_values=cache, use_cache=True).logits[0, 0]
        torch.testing.assert_close(logits, whole[at], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone, whole[at], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_hawk_is_recurrent_blocks_alone() -> None:
    """transformers runs such a model without its cache only, so the whole text at each token."""
    config = RecurrentGemmaConfig(**SMALL, block_types=["recurrent"], lru_width=40)
    theirs = RecurrentGemmaForCausalLM(config).eval()
    randomise(theirs)
    family = Griffin.from_hf(json.loads(config.to_json_string(use_diff=False)))
    ours = converted(family, theirs)
    ids = tokens(96)
    expected = theirs(ids, use_cache=False).logits
    torch.testing.assert_close(ours(ids).logits, expected, atol=1e-4, rtol=1e-4)
    prompt = ids[0].tolist()
    said = list(prompt)
    for _ in range(12):
        said.append(int(theirs(torch.tensor([said]), use_cache=False).logits[0, -1].argmax()))
    assert greedy(ours, prompt, 12) == said[len(prompt) :]
    held = [e for entries in ours.spec.entries() for e in entries.values()]
    assert held
    assert all(isinstance(e, Fixed) for e in held)
    assert state_bytes(ours.spec.entries(), torch.float32)[1] == 0


def test_what_it_remembers_does_not_grow_with_the_text() -> None:
    for entries in Griffin.tiny().spec().entries():
        for entry in entries.values():
            assert isinstance(entry, Fixed) or (isinstance(entry, PerToken) and entry.window == 5)


def test_sizes() -> None:
    """The class's defaults, where all heads have keys of their own; the published 2B has one."""
    assert count(Griffin().spec()) == 2_010_263_040
    published = {"num_key_value_heads": 1, "intermediate_size": 15360}
    assert count(Griffin.from_hf(published).spec()) == 2_682_862_080


def test_configurations_that_contradict_themselves() -> None:
    with pytest.raises(ConfigError, match=r"block_types=.*known: recurrent, attention"):
        Griffin.from_hf({"block_types": ["recurrent", "mamba"]})
    with pytest.raises(ConfigError, match="lru_width=30 is no multiple of 4 heads"):
        Griffin.from_hf({**SMALL, "lru_width": 30})
    with pytest.raises(ConfigError, match="head_dim=16 is not 32 / 4"):
        Griffin.from_hf({**SMALL, "head_dim": 16})
    with pytest.raises(ConfigError, match="embeddings_scale_by_sqrt_dim=False"):
        Griffin.from_hf({**SMALL, "embeddings_scale_by_sqrt_dim": False})
    older = Griffin.from_hf({**SMALL, "_block_types": ["attention"], "partial_rotary_factor": 0.5})
    assert older.pattern == ("attention",)


def test_the_engine_batches_requests_of_any_length() -> None:
    model = Griffin.tiny().spec().build()
    assert isinstance(model, StackModule)
    model.initialise(seed=0, std=0.5).eval()
    engine = Engine(model, byte_tokenizer(), context=96, parallel=3, budget=1 << 20)
    prompts = [list(range(3, 3 + k)) for k in (1, 5, 9, 40)]
    streams = [engine.submit(p, Sampling(max_tokens=12, temperature=0.0)) for p in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        assert list(stream.result().tokens) == reference(model, prompt, 12)
    engine.close()


def made(pattern: tuple[str, ...], window: int) -> StackModule:
    model = replace(Griffin.tiny(), pattern=pattern, window=window).spec().build()
    assert isinstance(model, StackModule)
    model.initialise(seed=0, std=0.2)
    return model


BOTH = [("recurrent", "recurrent", "attention"), ("recurrent",)]


class Walk:
    """One text read in pieces."""

    def __init__(self, model: StackModule) -> None:
        self.model = model
        self.pool = StatePool(model.spec.entries(), budget=1 << 22, slots=1, page=16)
        self.state = self.pool.open()

    @torch.no_grad()
    def read(self, count: int) -> None:
        """The next so many tokens at once."""
        begin = self.state.length
        self.pool.reserve(self.state, count)
        step = step_of([self.state], [count], [1 << 20], torch.device("cpu"))
        ids = torch.arange(begin, begin + count) * 7919 % 96
        handles = self.pool.handles([self.state], [count])
        out = self.model.run(ids, step, handles, select=torch.tensor([count - 1]))
        assert out.logits is not None
        assert out.logits.isfinite().all()
        self.pool.advance(self.state, count)

    @property
    def held(self) -> int:
        """Bytes of its slot and pages."""
        fixed = sum(t.nbytes for t in self.pool.fixed.values())
        groups = zip(self.pool.groups, self.state.tables, strict=True)
        return fixed + sum(
            sum(p is not None for p in table.pages) * group.page * group.token_bytes
            for group, table in groups
        )


@pytest.mark.parametrize("pattern", BOTH, ids=["griffin", "hawk"])
def test_the_state_is_as_large_after_ten_thousand_tokens(pattern: tuple[str, ...]) -> None:
    """Once the window is full, nothing more is held."""
    walk, sizes = Walk(made(pattern, window=64)), set()
    for _ in range(40):
        walk.read(256)
        sizes.add(walk.held)
    assert walk.state.length == 10_240
    assert len(sizes) == 1


@pytest.mark.slow
@pytest.mark.parametrize("pattern", BOTH, ids=["griffin", "hawk"])
def test_a_token_costs_the_same_after_64k_tokens(pattern: tuple[str, ...]) -> None:
    """At 4K, 16K and 64K tokens, bytes and processor time within 15 %.

    Times are of 64 tokens, four pages, the lengths in turns; of forty the least counts, which
    other work on the machine delays least.
    """
    torch.set_num_threads(1)
    model = made(pattern, window=256)
    walks = {length: Walk(model) for length in (4096, 16_384, 65_536)}
    for length, walk in walks.items():
        for _ in range(length // 512):
            walk.read(512)
    sizes = [walk.held for walk in walks.values()]
    assert max(sizes) <= 1.15 * min(sizes)
    least = dict.fromkeys(walks, math.inf)
    for _ in range(40):
        for length, walk in walks.items():
            began = time.process_time()
            for _ in range(64):
                walk.read(1)
            least[length] = min(least[length], time.process_time() - began)
    assert max(least.values()) <= 1.15 * min(least.values()), least
