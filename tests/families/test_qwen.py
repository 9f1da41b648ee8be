"""Qwen 1: its weights in the Qwen 2 class up to the trained length, its schemes beyond it."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from keifu.checkpoints.transfer import empty, fill
from keifu.families.qwen import Qwen
from keifu.nn.part import build, count
from keifu.nn.rotary import frequencies
from keifu.nn.stack import StackModule
from tests.families.parity import SMALL, Tensors, randomise, same_greedy, same_logits, tokens

CONFIG = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "kv_channels": 8,
    "max_position_embeddings": 64,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "no_bias": True,
}


def made(trained: int) -> tuple[StackModule, Qwen2ForCausalLM]:
    """The same random weights in both classes."""
    family = Qwen.from_hf({**CONFIG, "seq_length": trained})
    settings = {**SMALL, "num_key_value_heads": 4}
    theirs = Qwen2ForCausalLM(Qwen2Config(**settings)).eval()
    randomise(theirs)
    published = {}
    for name, value in theirs.state_dict().items():
        new = name.replace("model.layers.", "transformer.h.").replace("input_layernorm", "ln_1")
        new = new.replace("post_attention_layernorm", "ln_2").replace("o_proj", "c_proj")
        new = new.replace("mlp.gate_proj", "mlp.w2").replace("mlp.up_proj", "mlp.w1")
        new = new.replace("mlp.down_proj", "mlp.c_proj").replace("self_attn", "attn")
        new = new.replace("model.embed_tokens", "transformer.wte")
        published[new.replace("model.norm", "transformer.ln_f")] = value
    for layer in range(2):
        for leaf in ("weight", "bias"):
            parts = [published.pop(f"transformer.h.{layer}.attn.{x}_proj.{leaf}") for x in "qkv"]
            published[f"transformer.h.{layer}.attn.c_attn.{leaf}"] = torch.cat(parts)
    ours = build(family.spec(), device="meta")
    assert isinstance(ours, StackModule)
    fill(ours, family.names(), Tensors(published))
    back = dict(empty(ours, family.names()))
    assert back.keys() == published.keys()
    assert all(torch.equal(back[k], published[k]) for k in back)  # type: ignore[arg-type]
    return ours.eval(), theirs


def test_equals_qwen2_up_to_the_trained_length() -> None:
    ours, theirs = made(trained=64)
    same_logits(ours, theirs, tokens(96))
    same_greedy(ours, theirs, 96)


@torch.no_grad()
@pytest.mark.parametrize(("length", "alpha"), [(16, 1), (17, 3), (40, 7)])
def test_beyond_it_the_base_and_the_queries_grow(length: int, alpha: int) -> None:
    """Ours at a length beyond 16 trained positions = the slow equations in one attention layer."""
    ours, _ = made(trained=16)
    layer = ours.blocks[0].mixer
    x = torch.randn(length, 32)
    from keifu.nn.step import fresh_step

    got = layer(x, fresh_step([length]), None)
    q, k, v = (t.view(length, 4, 8).double() for t in layer.qkv(x).split(32, -1))
    turn = frequencies(8, 1e4 * alpha ** (8 / 6)).double()
    angle = torch.arange(length).double()[:, None] * turn
    spin = torch.exp(1j * angle)[:, None]

    def turned(t: torch.Tensor) -> torch.Tensor:
        z = torch.complex(t[..., :4], t[..., 4:]) * spin
        return torch.cat([z.real, z.imag], -1)

    grow = [max(1.0, math.log(i + 1) / math.log(16)) for i in range(length)]
    q, k = turned(q) * torch.tensor(grow, dtype=torch.float64)[:, None, None], turned(k)
    scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(8)
    shut = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
    mixed = torch.einsum("hij,jhd->ihd", scores.masked_fill(shut, -math.inf).softmax(-1), v)
    expected = mixed.flatten(1) @ layer.out.weight.double().T
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "size", "vocab", "parameters"),
    [
        (4096, 32, 32, 22016, 151936, 7_721_324_544),
        (5120, 40, 40, 27392, 152064, 14_167_290_880),
        (8192, 80, 64, 49152, 152064, 72_287_920_128),
    ],
)
def test_published_sizes(
    width: int, depth: int, heads: int, size: int, vocab: int, parameters: int
) -> None:
    family = Qwen.from_hf(
        {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "intermediate_size": size,
            "vocab_size": vocab,
            "kv_channels": 128,
        }
    )
    assert count(family.spec()) == parameters
