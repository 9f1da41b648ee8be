"""Gemma 1, 2 and 3 (text) against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma2Config, Gemma2ForCausalLM, GemmaConfig, GemmaForCausalLM

from keifu.families.gemma import Gemma
from keifu.families.gemma2 import Gemma2
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
