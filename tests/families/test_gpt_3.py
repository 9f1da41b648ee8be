"""GPT-3: dense layers = GPT-2, banded ones = GPT-Neo's and brute force, published sizes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM

from keifu.checkpoints.transfer import fill
from keifu.core.errors import ConfigError
from keifu.families.gpt_3 import GPT3
from keifu.nn.attend import attend
from keifu.nn.part import build, count
from keifu.nn.stack import StackModule
from tests.families.parity import Tensors, converted, randomise, same_greedy, same_logits, tokens
from tests.families.test_gpt_2 import SIZES

DENSE = {**SIZES, "attention_layers": ["global", "global"]}


def test_dense_mode_equals_gpt_2() -> None:
    theirs: Any = GPT2LMHeadModel(GPT2Config(**SIZES))
    randomise(theirs.eval())
    ours = converted(GPT3.from_hf(DENSE), theirs)
    same_logits(ours, theirs, tokens(96))
    same_greedy(ours, theirs, 96)


def test_banded_mode_equals_gpt_neo() -> None:
    """GPT-Neo does not scale scores and has no biases of q, k, v: both can be written in ours."""
    kinds = ["global", "local"]
    theirs: Any = GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=96,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            intermediate_size=48,
            max_position_embeddings=64,
            window_size=5,
            attention_types=[[kinds, 1]],
        )
    )
    randomise(theirs.eval())
    with torch.no_grad():
        for p in theirs.parameters():
            p.mul_(0.5 if p.dim() > 1 else 1.0)  # unscaled scores would saturate
    published = {}
    for name, value in theirs.state_dict().items():
        published[name.replace("attn.attention.out_proj", "attn.c_proj")] = (
            value.t() if value.dim() == 2 and (".mlp." in name or "out_proj" in name) else value
        )
    for layer in range(2):
        parts = [
            published.pop(f"transformer.h.{layer}.attn.attention.{x}_proj.weight") for x in "qkv"
        ]
        parts[0] = parts[0] * 8**0.5
        published[f"transformer.h.{layer}.attn.c_attn.weight"] = torch.cat(parts).t()
        published[f"transformer.h.{layer}.attn.c_attn.bias"] = torch.zeros(96)
    family = GPT3.from_hf({**SIZES, "n_inner": 48, "window_size": 5, "attention_layers": kinds})
    ours = build(family.spec(), device="meta")
    assert isinstance(ours, StackModule)
    fill(ours, family.names(), Tensors(published))
    same_logits(ours.eval(), theirs, tokens(96))
    same_greedy(ours, theirs, 96)


def test_the_band_equals_brute_force() -> None:
    """Scores of a banded layer, summed by hand over the keys that the band leaves."""
    family = GPT3.tiny()
    mask = family.attention(1).mask
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 11, 1, 6, dtype=torch.float64)
    at = torch.arange(11)
    got = attend(q, k, v, query_positions=at, key_positions=at, mask=mask, scale=0.4)[0, :, 0]
    for i in range(11):
        seen = [j for j in range(11) if i - family.window < j <= i]
        weights = torch.tensor([0.4 * float(q[0, i, 0] @ k[0, j, 0]) for j in seen]).exp()
        expected = sum(w * v[0, j, 0] for w, j in zip(weights, seen, strict=True)) / weights.sum()
        torch.testing.assert_close(got[i], expected, atol=1e-6, rtol=1e-6)
    for i, j in itertools.product(range(11), range(11)):
        visible = bool(mask.allowed(torch.tensor([[i]]), torch.tensor([[j]])))
        assert visible == (0 <= i - j < 4)


def test_layers_take_turns_and_a_wrong_list_is_refused() -> None:
    assert GPT3.from_hf({"n_layer": 5}).banded == (False, True, False, True, False)
    with pytest.raises(ConfigError, match="attention_layers: 1 for 2 layers"):
        GPT3.from_hf({**SIZES, "attention_layers": ["local"]})
    with pytest.raises(ConfigError, match="'banded'"):
        GPT3.from_hf({**SIZES, "attention_layers": ["global", "banded"]})


@pytest.mark.parametrize(
    ("depth", "width", "heads", "head", "billions"),
    [
        (12, 768, 12, 64, 0.125),
        (24, 1024, 16, 64, 0.350),
        (24, 1536, 16, 96, 0.760),
        (24, 2048, 16, 128, 1.3),
        (32, 2560, 32, 80, 2.7),
        (32, 4096, 32, 128, 6.7),
        (40, 5140, 40, 128, 13.0),
        (96, 12288, 96, 128, 174.6),
    ],
)
def test_published_sizes(depth: int, width: int, heads: int, head: int, billions: float) -> None:
    """Table 2.1, but 16 heads for 1.3B: its 24 of 128 are not 2048 wide and make 1.5B."""
    config: dict[str, Any] = {"n_layer": depth, "n_embd": width, "n_head": heads, "head_dim": head}
    parameters = count(GPT3.from_hf({**config, "n_positions": 2048}).spec())
    inner = heads * head
    layer = 4 * width * inner + 3 * inner + width + 8 * width**2 + 5 * width + 4 * width
    assert parameters == depth * layer + (50257 + 2048 + 2) * width
    assert parameters / 1e9 == pytest.approx(billions, rel=3e-4 if billions > 100 else 0.02)
