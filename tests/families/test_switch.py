"""Switch Transformers against transformers: sparse layers, capacity and overflow, generation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

from keifu.checkpoints.transfer import empty
from keifu.core.errors import ConfigError
from keifu.families._load import build_model, open_checkpoint
from keifu.families.published.experts import EXPERTS_LIKE
from keifu.families.switch import Switch
from keifu.inference.request import Sampling
from keifu.inference.rules import Rules
from keifu.nn.pair import PairModule
from keifu.nn.part import count
from tests.families.pair_parity import (
    batch,
    both_ways_pair,
    converted_pair,
    randomise,
    same_generate,
    same_pair_logits,
)

SIZES: dict[str, Any] = {
    "vocab_size": 96, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 4, "num_heads": 4,
    "num_decoder_layers": 2, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 1,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0, "num_experts": 5, "expert_capacity": 64,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "capacity-64": {},
    "overflow": {"expert_capacity": 2, "num_experts": 3},
    "all-sparse": {"num_sparse_encoder_layers": 4, "num_sparse_decoder_layers": 2},
    "bias": {"router_bias": True, "dense_act_fn": "gelu_new", "num_experts": 8},
    "one-expert": {"num_experts": 1, "expert_capacity": 5},
}
RULES = Rules(start=(0,))


def theirs_of(variant: str) -> Any:
    config = SwitchTransformersConfig(**{**SIZES, **VARIANTS[variant]})
    made = SwitchTransformersForConditionalGeneration(config).eval()
    randomise(made)
    return made


@pytest.mark.parametrize("variant", VARIANTS)
def test_parity_both_ways(variant: str, tmp_path: Path) -> None:
    ours = both_ways_pair(Switch, theirs_of(variant), tmp_path / "m")
    heard: list[tuple[str, float]] = []
    source = batch(96)[0]
    ours.encode(source, emit=lambda name, value: heard.append((name, float(value))))
    dropped = [value for name, value in heard if name == "dropped"]
    assert len(dropped) == (4 if variant == "all-sparse" else 2)
    assert (max(dropped) > 0.2) == (variant in ("overflow", "one-expert"))


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_equals_theirs(beams: int) -> None:
    """They count the capacity of a decoder anew at every token; 64 is never reached here."""
    theirs = theirs_of("capacity-64")
    ours = converted_pair(Switch.from_hf(theirs.config.to_dict()), theirs)
    settings = {"num_beams": beams, "max_new_tokens": 14}
    sampling = Sampling(temperature=0.0, max_tokens=14)
    if beams > 1:
        sampling = Sampling(temperature=0.0, max_tokens=14, beams=beams)
    same_generate(ours, theirs, 96, RULES, settings, sampling)


@torch.no_grad()
def test_what_the_published_config_says(tmp_path: Path) -> None:
    """The keys of the hub's files, derived ones too."""
    published = {
        "d_ff": 3072, "num_sparse_encoder_layers": 6, "num_sparse_decoder_layers": 6,
        "encoder_sparse_step": 2, "decoder_sparse_step": 2, "feed_forward_proj": "relu",
        "is_gated_act": False, "router_type": "tokens_masked", "n_positions": 512,
        "batch_prioritized_routing": False, "router_jitter_noise": 0.01,
        "router_dtype": "float32", "model_type": "switch_transformers",
    }  # fmt: skip
    assert Switch.from_hf(published) == Switch()
    for wrong in ({"expert_capacity": 0}, {"num_experts": 0}, {"num_sparse_encoder_layers": 0}):
        with pytest.raises(ConfigError, match=r"not allowed|are allowed"):
            Switch.from_hf({**published, **wrong})


SWITCH_C: dict[str, Any] = {
    "d_ff": 6144, "d_kv": 64, "d_model": 2080, "num_heads": 30, "num_layers": 15,
    "num_decoder_layers": 12, "num_experts": 2048, "expert_capacity": 64, "is_full_sparse": True,
    "num_sparse_encoder_layers": 15, "num_sparse_decoder_layers": 15, "encoder_sparse_step": 1,
    "decoder_sparse_step": 0, "feed_forward_proj": "relu", "dense_act_fn": "relu",
    "layer_norm_epsilon": 1e-6, "model_type": "switch_transformers", "vocab_size": 32128,
}  # fmt: skip
"""Of google/switch-c-2048's config.json; the checkpoint has 15 decoder layers and its own head."""


def test_the_config_of_switch_c_is_read_as_its_checkpoint_is() -> None:
    read = Switch.from_hf(SWITCH_C)
    assert (read.decoder_depth, read.decoder_sparse, read.tied) == (15, 15, False)
    row = EXPERTS_LIKE["switch-c-2048"]
    assert read == Switch.from_hf(row.config)
    assert count(read.spec()) == row.parameters
    assert Switch.from_hf(read.to_hf()) == read


@torch.no_grad()
def test_a_head_of_its_own_is_not_scaled() -> None:
    """transformers 5 then keeps three tables apart; every checkpoint has one."""
    config = SwitchTransformersConfig(**SIZES, tie_word_embeddings=False)
    theirs = SwitchTransformersForConditionalGeneration(config).eval()
    randomise(theirs)
    theirs.set_input_embeddings(theirs.shared)
    ours = converted_pair(Switch.from_hf(theirs.config.to_dict()), theirs)
    same_pair_logits(ours, theirs, 96, 96)


@torch.no_grad()
def test_a_head_of_its_own_under_its_old_name(tmp_path: Path) -> None:
    """Large checkpoints have it under the decoder."""
    family = replace(Switch.tiny(), tied=False)
    model = family.spec().build()
    assert isinstance(model, PairModule)
    model.initialise(seed=1, std=0.3)
    named = {n: t for n, t in empty(model, family.names()) if isinstance(t, Tensor)}
    named["decoder.lm_head.weight"] = named.pop("lm_head.weight")
    save_file({n: t.contiguous() for n, t in named.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(family.to_hf()))
    again = build_model(open_checkpoint(tmp_path))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
