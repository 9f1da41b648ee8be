"""Gemma 1, 2 and 3 (text) against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
)

from keifu.families.gemma import Gemma
from keifu.families.gemma2 import Gemma2
from keifu.families.gemma3 import Gemma3
from tests.families.parity import SMALL, both_ways


@pytest.mark.parametrize(
    "option", [{}, {"num_key_value_heads": 1}, {"attention_bias": True}], ids=str
)
def test_gemma_parity(option: dict[str, Any], tmp_path: Path) -> None:
    settings = {**SMALL, "head_dim": 16, "tie_word_embeddings": True, **option}
    both_ways(Gemma, GemmaForCausalLM(GemmaConfig(**settings)), tmp_path / "m")


@pytest.mark.parametrize(
    "option",
    [
        {},
        {"attn_logit_softcapping": None},
        {"final_logit_softcapping": None},
        {"query_pre_attn_scalar": 144, "attn_logit_softcapping": 2.0},
        {"layer_types": ["full_attention", "sliding_attention"]},
    ],
    ids=str,
)
def test_gemma2_parity(option: dict[str, Any], tmp_path: Path) -> None:
    settings = {**SMALL, "head_dim": 16, "tie_word_embeddings": True, "sliding_window": 4}
    theirs = Gemma2ForCausalLM(Gemma2Config(**{**settings, **option}, attn_implementation="eager"))
    both_ways(Gemma2, theirs, tmp_path / "m")


ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}


@pytest.mark.parametrize(
    "option",
    [
        {},
        {"rope_parameters": ROPES},
        {"attention_bias": True},
        {"final_logit_softcapping": 5.0},
    ],
    ids=str,
)
def test_gemma3_parity(option: dict[str, Any], tmp_path: Path) -> None:
    settings = {**SMALL, "head_dim": 16, "tie_word_embeddings": True, "sliding_window": 4}
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    settings |= {"num_hidden_layers": 3, "layer_types": kinds, **option}
    both_ways(Gemma3, Gemma3ForCausalLM(Gemma3TextConfig(**settings)), tmp_path / "m")


def test_gemma3_older_rope_keys() -> None:
    old = {"rope_theta": 1e6, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 3}
    read = Gemma3.from_hf({"num_hidden_layers": 6, **old})
    assert read.local == (True, True, False) * 2
    assert (read.rope_base, read.local_base) == (1e6, 10000.0)
