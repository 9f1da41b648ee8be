"""Mistral's attention: windows as transformers has them, heads shared or not, a bounded cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from keifu.families.mistral import Mistral
from keifu.inference.runner import step_of
from keifu.nn.part import build
from keifu.nn.stack import StackModule
from keifu.nn.state import StatePool
from tests.families.parity import SMALL, both_ways, randomise, tokens


@pytest.mark.parametrize("kv_heads", [1, 2, 4], ids=["MQA", "GQA", "MHA"])
def test_window_of_four_equals_transformers(kv_heads: int, tmp_path: Path) -> None:
    config = MistralConfig(**{**SMALL, "sliding_window": 4, "num_key_value_heads": kv_heads})
    both_ways(Mistral, MistralForCausalLM(config), tmp_path / "m")


@torch.no_grad()
def test_the_cache_is_never_longer_than_the_window() -> None:
    """400 tokens through a pool of four places: they are used again and again, none is missed."""
    config = MistralConfig(**{**SMALL, "sliding_window": 4, "max_position_embeddings": 512})
    model = build(Mistral.from_hf(config.to_dict()).spec())
    assert isinstance(model, StackModule)
    randomise(model)
    ids = tokens(SMALL["vocab_size"], 1, 400)[0]
    whole = model(ids).logits
    assert whole is not None
    place = StatePool(model.spec.entries(), budget=1 << 20, page=1).token_bytes
    pool = StatePool(model.spec.entries(), budget=4 * place, page=1)
    state = pool.open()
    assert pool.capacity == 4
    for at in range(400):
        pool.reserve(state, 1)
        assert pool.capacity - pool.free_tokens == min(at + 1, 4)
        step = step_of([state], [1], [400], torch.device("cpu"))
        logits = model.run(ids[at : at + 1], step, pool.handles([state], [1])).logits
        assert logits is not None
        torch.testing.assert_close(logits[0], whole[at], atol=1e-4, rtol=1e-4)
        pool.advance(state, 1)
