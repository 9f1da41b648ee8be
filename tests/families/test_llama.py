"""LLaMA against transformers, every option of its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from keifu.families.llama import Llama
from tests.families.parity import SMALL, both_ways


def rope(**settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 1e4, **settings}}


LLAMA3 = rope(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all-heads": {"num_key_value_heads": 4},
    "one-key-head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide-heads": {"head_dim": 16},
    "gelu": {"hidden_act": "gelu_pytorch_tanh"},
    "eps": {"rms_norm_eps": 1e-2},
    "theta": rope(rope_type="default", rope_theta=5e5),
    "linear": rope(rope_type="linear", factor=4.0),
    "dynamic": {**rope(rope_type="dynamic", factor=4.0), "max_position_embeddings": 16},
    "yarn": rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
    "llama3": LLAMA3,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_parity(option: str, tmp_path: Path) -> None:
    theirs = LlamaForCausalLM(LlamaConfig(**{**SMALL, **OPTIONS[option]}))
    both_ways(Llama, theirs, tmp_path / "m", by_length=option == "dynamic")
