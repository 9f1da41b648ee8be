"""PaLM: slow float64 equations of the paper, Falcon's class with another MLP, published sizes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import FalconConfig, FalconForCausalLM

from keifu.checkpoints.names import half_to_pairs
from keifu.families.palm import PaLM
from keifu.nn.part import count
from keifu.nn.stack import StackModule
from tests.families.parity import randomise, same_greedy, same_logits, tokens


def made() -> tuple[PaLM, StackModule]:
    family = PaLM.tiny()
    model = family.spec().build()
    assert isinstance(model, StackModule)
    randomise(model)
    return family, model.eval()


def slow(model: StackModule, family: PaLM, ids: Tensor) -> Tensor:
    """Section 2 in float64: heads one by one, positions as complex turns of neighbouring pairs."""
    weights = {n: p.double() for n, p in model.named_parameters()}
    size, length = family.head_width or 0, len(ids)

    def norm(x: Tensor, name: str) -> Tensor:
        y = x - x.mean(-1, keepdim=True)
        return y / (y.pow(2).mean(-1, keepdim=True) + family.eps).sqrt() * weights[f"{name}.weight"]

    def turned(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.contiguous().view(length, size // 2, 2))
        turn = 10000.0 ** (-2 * torch.arange(size // 2).double() / size)
        angle = torch.arange(length).double()[:, None] * turn
        return torch.view_as_real(pairs * torch.exp(1j * angle)).flatten(1)

    x = weights["input.table.weight"][ids]
    for layer in range(family.depth):
        at = f"blocks.{layer}"
        y = norm(x, f"{at}.norms.mixer_norm")
        qkv = y @ weights[f"{at}.mixer.qkv.weight"].T
        q, k, v = qkv.split([family.heads * size, size, size], -1)
        key, mixed = turned(k), []
        for head in range(family.heads):
            scores = turned(q[:, head * size : (head + 1) * size]) @ key.T / math.sqrt(size)
            shut = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
            mixed.append(scores.masked_fill(shut, -math.inf).softmax(-1) @ v)
        gate, up = (y @ weights[f"{at}.mlp.gate_up.weight"].T).chunk(2, -1)
        swish = gate / (1 + torch.exp(-gate))
        attended = torch.cat(mixed, -1) @ weights[f"{at}.mixer.out.weight"].T
        x = x + (swish * up) @ weights[f"{at}.mlp.down.weight"].T + attended
    return norm(x, "norm") @ weights["input.table.weight"].T / math.sqrt(family.width)


@torch.no_grad()
def test_equals_the_slow_equations() -> None:
    family, model = made()
    ids = tokens(96, 1, 19)[0]
    logits = model(ids).logits
    torch.testing.assert_close(logits.double(), slow(model, family, ids), atol=1e-5, rtol=1e-4)


class SwiGLU(nn.Module):
    """PaLM's MLP in the place of Falcon's."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.gate_up, self.down = ours.gate_up.weight, ours.down.weight

    def forward(self, x: Tensor) -> Tensor:
        gate, up = (x @ self.gate_up.T).chunk(2, -1)
        out: Tensor = (nn.functional.silu(gate) * up) @ self.down.T
        return out


@torch.no_grad()
def test_equals_falcon_with_another_mlp() -> None:
    """Falcon-7B's block is PaLM's but for the MLP, the norms' biases and the layout of pairs."""
    family, model = made()
    ours: Any = model
    theirs: Any = FalconForCausalLM(
        FalconConfig(
            vocab_size=96,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            layer_norm_epsilon=family.eps,
            max_position_embeddings=64,
        )
    )
    inner = theirs.eval().transformer
    inner.word_embeddings.weight.copy_(ours.input.table.weight)
    halves: Any = half_to_pairs(1).load  # pairs -> halves, one head at a time
    for layer, block in zip(inner.h, ours.blocks, strict=True):
        heads = [halves(h) for h in block.mixer.qkv.weight[:40].split(8)]
        layer.self_attention.query_key_value.weight.copy_(
            torch.cat([*heads, block.mixer.qkv.weight[40:]])
        )
        layer.self_attention.dense.weight.copy_(block.mixer.out.weight)
        layer.input_layernorm.weight.copy_(block.norms.mixer_norm.weight)
        layer.mlp = SwiGLU(block.mlp)
    inner.ln_f.weight.copy_(ours.norm.weight / math.sqrt(family.width))
    same_logits(model, theirs, tokens(96))
    same_greedy(model, theirs, 96)


@pytest.mark.parametrize(
    ("depth", "heads", "width", "billions"),
    [(32, 16, 4096, 8.63), (64, 32, 8192, 62.50), (118, 48, 18432, 540.35)],
)
def test_published_sizes(depth: int, heads: int, width: int, billions: float) -> None:
    """Table 1, to its last digit, without the norms."""
    family = PaLM(depth=depth, heads=heads, width=width, hidden=4 * width)
    matrices = count(family.spec()) - (depth + 1) * width
    assert matrices / 1e9 == pytest.approx(billions, abs=0.005)


def test_the_largest_by_hand() -> None:
    """540,354,281,472 numbers in matrices; each norm adds its 18,432."""
    total = count(PaLM().spec())
    layer = 2 * 18432 * 48 * 256 + 2 * 18432 * 256 + 3 * 18432 * 73728
    assert total - 119 * 18432 == 118 * layer + 256000 * 18432 == 540_354_281_472
