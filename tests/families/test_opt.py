"""OPT against transformers, the 350M model's layout included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import OPTConfig, OPTForCausalLM

from keifu.families.opt import OPT
from tests.families.parity import both_ways

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
    "narrow": {"word_embed_proj_dim": 16, "_remove_final_layer_norm": True},
    "galactica": {"enable_bias": False, "activation_function": "gelu"},
    "bare-norms": {"layer_norm_elementwise_affine": False, "tie_word_embeddings": False},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_parity(option: str, tmp_path: Path) -> None:
    theirs = OPTForCausalLM(OPTConfig(**{**SIZES, **OPTIONS[option]}))
    both_ways(OPT, theirs, tmp_path / "m")
