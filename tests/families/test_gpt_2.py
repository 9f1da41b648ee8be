"""GPT-2 against transformers: the options of its scores, both heads, published sizes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2DoubleHeadsModel, GPT2LMHeadModel, GPT2Model

from keifu.checkpoints.transfer import fill
from keifu.core.errors import ConfigError
from keifu.families.gpt_2 import GPT2
from keifu.nn.part import build, count
from keifu.nn.stack import StackModule
from tests.families.parity import Tensors, both_ways, converted, export, randomise, tokens

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "by-layer": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "unscaled": {"scale_attn_weights": False},
    "untied-narrow": {"tie_word_embeddings": False, "n_inner": 48, "activation_function": "relu"},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_parity(option: str, tmp_path: Path) -> None:
    both_ways(GPT2, GPT2LMHeadModel(GPT2Config(**SIZES, **OPTIONS[option])), tmp_path / "m")


@torch.no_grad()
def test_the_second_head_scores_choices(tmp_path: Path) -> None:
    theirs: Any = GPT2DoubleHeadsModel(GPT2Config(**SIZES))
    randomise(theirs.eval())
    config = {**theirs.config.to_dict(), "architectures": ["GPT2DoubleHeadsModel"]}
    family = GPT2.from_hf(config)
    ours = converted(family, theirs)
    choices, at = tokens(96, 6, 9).view(2, 3, 9), torch.tensor([[8, 3, 5], [0, 8, 7]])
    expected = theirs(choices, mc_token_ids=at)
    got = ours(choices.flatten(0, 1), taps=["head.choice"])
    scores = got.taps["head.choice"].view(2, 3, 9).gather(2, at[..., None])[..., 0]
    torch.testing.assert_close(scores, expected.mc_logits, atol=1e-4, rtol=1e-4)
    logits = got.logits.view_as(expected.logits)
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)
    again: Any = GPT2DoubleHeadsModel.from_pretrained(export(family, ours, tmp_path / "m"))
    assert torch.allclose(
        again.eval()(choices, mc_token_ids=at).mc_logits, expected.mc_logits, atol=1e-6
    )
    with pytest.raises(ConfigError, match="summary_activation='tanh'"):
        GPT2.from_hf({**config, "summary_activation": "tanh"})


@torch.no_grad()
def test_the_bare_model_as_published_has_no_prefix_and_old_buffers() -> None:
    """The released files are of GPT2Model: "wte.weight", and each layer keeps its mask."""
    theirs: Any = GPT2LMHeadModel(GPT2Config(**SIZES))
    randomise(theirs.eval())
    bare: GPT2Model = theirs.transformer
    published = dict(bare.state_dict())
    published |= {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in range(2)}
    family = GPT2.from_hf(theirs.config.to_dict())
    ours = build(family.spec(), device="meta")
    assert isinstance(ours, StackModule)
    fill(ours, family.names(), Tensors(published))
    ids = tokens(96)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_matrices_into_the_residual_stream_start_smaller() -> None:
    family = GPT2(vocab=64, width=64, depth=8, heads=4, context=32)
    model: Any = family.spec().build()
    model.initialise(seed=1, std=0.02, residual=0.02 / math.sqrt(2 * family.depth))
    block: Any = model.blocks[3]
    for matrix in (block.mixer.out.weight, block.mlp.down.weight):
        assert float(matrix.detach().std()) == pytest.approx(0.005, rel=0.05)
    for matrix in (block.mixer.qkv.weight, block.mlp.up.weight, model.input.table.weight):
        assert float(matrix.detach().std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "parameters"),
    [(768, 12, 12, 124_439_808), (1600, 48, 25, 1_557_611_200)],
)
def test_published_sizes(width: int, depth: int, heads: int, parameters: int) -> None:
    family = GPT2.from_hf({"n_embd": width, "n_layer": depth, "n_head": heads})
    assert count(family.spec()) == parameters
    with torch.device("meta"):
        theirs = GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=depth, n_head=heads))
    assert sum(p.numel() for p in theirs.parameters()) == parameters
