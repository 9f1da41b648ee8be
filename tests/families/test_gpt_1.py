"""GPT-1 against transformers, with both heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import OpenAIGPTConfig, OpenAIGPTDoubleHeadsModel, OpenAIGPTLMHeadModel

from keifu.families.gpt_1 import GPT1
from keifu.nn.part import count
from tests.families.parity import both_ways, converted, export, randomise, tokens
from tests.families.test_gpt_2 import SIZES


@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_parity(act: str, tmp_path: Path) -> None:
    both_ways(GPT1, OpenAIGPTLMHeadModel(OpenAIGPTConfig(**SIZES, afn=act)), tmp_path / "m")


@torch.no_grad()
def test_the_second_head_scores_choices(tmp_path: Path) -> None:
    theirs: Any = OpenAIGPTDoubleHeadsModel(OpenAIGPTConfig(**SIZES))
    randomise(theirs.eval())
    config = {**theirs.config.to_dict(), "architectures": ["OpenAIGPTDoubleHeadsModel"]}
    family = GPT1.from_hf(config)
    ours = converted(family, theirs)
    choices, at = tokens(96, 4, 7).view(2, 2, 7), torch.tensor([[6, 2], [4, 5]])
    expected = theirs(choices, mc_token_ids=at)
    got = ours(choices.flatten(0, 1), taps=["head.choice"])
    scores = got.taps["head.choice"].view(2, 2, 7).gather(2, at[..., None])[..., 0]
    torch.testing.assert_close(scores, expected.mc_logits, atol=1e-4, rtol=1e-4)
    logits = got.logits.view_as(expected.logits)
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)
    again: Any = OpenAIGPTDoubleHeadsModel.from_pretrained(export(family, ours, tmp_path / "m"))
    assert torch.allclose(
        again.eval()(choices, mc_token_ids=at).mc_logits, expected.mc_logits, atol=1e-6
    )


def test_the_published_config_and_size() -> None:
    """The released config.json, its leftover keys included."""
    family = GPT1.from_hf(
        {"afn": "gelu", "architectures": ["OpenAIGPTLMHeadModel"], "attn_pdrop": 0.1,
         "embd_pdrop": 0.1, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
         "model_type": "openai-gpt", "n_ctx": 512, "n_embd": 768, "n_head": 12, "n_layer": 12,
         "n_positions": 512, "n_special": 0, "predict_special_tokens": True, "resid_pdrop": 0.1,
         "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
         "summary_type": "cls_index", "summary_use_proj": True, "vocab_size": 40478}
    )  # fmt: skip
    assert family == GPT1()
    assert count(family.spec()) == 116_534_784
