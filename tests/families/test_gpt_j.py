"""GPT-J against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import GPTJConfig, GPTJForCausalLM

from keifu.families.gpt_j import GPTJ
from keifu.nn.part import count
from tests.families.parity import both_ways
from tests.families.test_gpt_2 import SIZES

OPTIONS: dict[str, dict[str, Any]] = {
    "half-turns": {"rotary_dim": 4},
    "all-turns": {"rotary_dim": 8, "n_inner": 48, "activation_function": "relu"},
    "tied": {"rotary_dim": 4, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_parity(option: str, tmp_path: Path) -> None:
    both_ways(GPTJ, GPTJForCausalLM(GPTJConfig(**SIZES, **OPTIONS[option])), tmp_path / "m")


def test_the_published_config_and_size() -> None:
    """GPT-J-6B's released config.json (GPT4All-J is tuned from it)."""
    family = GPTJ.from_hf(
        {"activation_function": "gelu_new", "architectures": ["GPTJForCausalLM"],
         "attn_pdrop": 0.0, "bos_token_id": 50256, "embd_pdrop": 0.0, "eos_token_id": 50256,
         "gradient_checkpointing": False, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
         "model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_inner": None, "n_layer": 28,
         "n_positions": 2048, "resid_pdrop": 0.0, "rotary": True, "rotary_dim": 64,
         "scale_attn_weights": True, "summary_activation": None, "summary_first_dropout": 0.1,
         "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
         "task_specific_params": {"text-generation": {"do_sample": True}},
         "tie_word_embeddings": False, "tokenizer_class": "GPT2Tokenizer",
         "transformers_version": "4.18.0.dev0", "use_cache": True, "vocab_size": 50400}
    )  # fmt: skip
    assert count(family.spec()) == 6_050_882_784
