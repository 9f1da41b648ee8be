"""Falcon against transformers: both decoders, rotary and ALiBi, parallel and sequential."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM
from transformers.models.falcon.modeling_falcon import build_alibi_tensor

from keifu.core.errors import ConfigError
from keifu.families.falcon import Falcon
from keifu.nn.positions import CoarseAlibi
from keifu.nn.step import fresh_step
from tests.families.parity import both_ways

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_hidden_size": 48,
    "max_position_embeddings": 64,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "7b": {},
    "40b": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "11b": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "rw": {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
    "rw-three-heads": {"alibi": True, "multi_query": False, "num_attention_heads": 3,
                       "hidden_size": 24},
    "40b-alibi": {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": True},
    "sequential": {"parallel_attn": False, "bias": True, "tie_word_embeddings": False},
    "every-head": {"multi_query": False, "activation": "relu"},
    "dynamic": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_parity(option: str, tmp_path: Path) -> None:
    config = FalconConfig(**{**SIZES, **OPTIONS[option]})
    both_ways(Falcon, FalconForCausalLM(config), tmp_path / "m")


@pytest.mark.parametrize("heads", [4, 12, 32])
def test_alibi_is_rounded_as_released_at_any_length(heads: int) -> None:
    theirs = build_alibi_tensor(torch.ones(1, 700, dtype=torch.long), heads, torch.float32)
    at = torch.arange(700)
    ours = CoarseAlibi(heads, 0.25).bias(fresh_step([700]))(at[:2], at)
    assert torch.equal(ours[:, 0], theirs.view(heads, 700) * 0.25)
    assert torch.equal(ours[:, 0], ours[:, 1])


def test_a_new_decoder_in_sequence_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs parallel_attn"):
        Falcon.from_hf({**SIZES, "new_decoder_architecture": True, "parallel_attn": False})


def test_older_spellings() -> None:
    family = Falcon.from_hf({"n_layer": 2, "n_head": 128, "n_head_kv": 8, "hidden_size": 8192})
    assert (family.depth, family.heads, family.groups) == (2, 128, 8)
