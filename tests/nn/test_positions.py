"""Position schemes against transformers' own tables and the papers' formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from keifu.nn.positions import Alibi, BucketBias, LogN, NoPosition, Sinusoid
from keifu.nn.rotary import (
    DynamicNTK,
    LinearScaling,
    Llama3,
    LongRope,
    QwenNTK,
    Rotary,
    Scaling,
    YaRN,
    frequencies,
)
from keifu.nn.step import fresh_step


def config(**rope: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=128,
        rope_parameters={"rope_theta": 1e4, **rope},
    )


SHORT, LONG = tuple(1 + i / 16 for i in range(16)), tuple(2 + i / 4 for i in range(16))
CASES: list[tuple[Scaling, dict[str, Any], int]] = [
    (LinearScaling(4.0), {"rope_type": "linear", "factor": 4.0}, 50),
    (DynamicNTK(4.0, 128), {"rope_type": "dynamic", "factor": 4.0}, 50),
    (DynamicNTK(4.0, 128), {"rope_type": "dynamic", "factor": 4.0}, 300),
    (
        YaRN(4.0, 32),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        100,
    ),
    (
        YaRN(8.0, 64, beta_fast=16, beta_slow=2, mscale=0.7, mscale_all_dim=0.4),
        {
            "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64,
            "beta_fast": 16, "beta_slow": 2, "mscale": 0.7, "mscale_all_dim": 0.4,
        },
        100,
    ),
    (
        Llama3(8.0, 1.0, 4.0, 32),
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        },
        100,
    ),
    *(
        (
            LongRope(SHORT, LONG, 32, math.sqrt(1 + math.log(4) / math.log(32))),
            {
                "rope_type": "longrope", "short_factor": list(SHORT), "long_factor": list(LONG),
                "original_max_position_embeddings": 32, "factor": 4.0,
            },
            length,
        )
        for length in (20, 33)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("scaling", "published", "length"), CASES)
def test_scaled_frequencies_equal_transformers(
    scaling: Scaling, published: dict[str, Any], length: int
) -> None:
    theirs = ROPE_INIT_FUNCTIONS[published["rope_type"]]
    expected, factor = theirs(config(**published), torch.device("cpu"), seq_len=length)
    got, ours = scaling.frequencies(32, 1e4, length)
    torch.testing.assert_close(got, expected, atol=0, rtol=1e-6)
    assert ours == pytest.approx(factor)


def test_half_rotation_equals_transformers() -> None:
    step, q, k = fresh_step([11]), torch.randn(11, 4, 32), torch.randn(11, 2, 32)
    cos, sin = LlamaRotaryEmbedding(config(rope_type="default"))(q, step.positions[None])
    expected = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
    for got, want in zip(Rotary(32).rotate(q, k, step), expected, strict=True):
        torch.testing.assert_close(got.transpose(0, 1)[None], want, atol=1e-6, rtol=1e-6)


def test_pairs_turn_as_complex_numbers() -> None:
    step, q = fresh_step([9]), torch.randn(9, 2, 12)
    got, _ = Rotary(8, layout="interleaved").rotate(q, q, step)
    turned = torch.view_as_complex(q[..., :8].double().unflatten(-1, (4, 2)).contiguous())
    angle = step.positions.double()[:, None, None] * frequencies(8, 1e4).double()
    expected = torch.view_as_real(turned * torch.exp(1j * angle)).flatten(-2)
    torch.testing.assert_close(got[..., :8].double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(got[..., 8:], q[..., 8:])


def test_rotated_products_depend_on_distance_alone() -> None:
    step, x = fresh_step([40]), torch.randn(1, 1, 16).expand(40, 1, 16)
    for layout in ("half", "interleaved"):
        q, k = Rotary(16, layout=layout).rotate(x, x, step)
        scores = q[:, 0] @ k[:, 0].T
        torch.testing.assert_close(scores[5, 2], scores[35, 32], atol=1e-4, rtol=1e-4)


def test_each_row_has_the_scaling_of_its_own_limit() -> None:
    step = fresh_step([6, 40])
    q = torch.randn(46, 1, 8)
    scheme = Rotary(8, scaling=DynamicNTK(2.0, 16))
    together, _ = scheme.rotate(q, q, step)
    alone, _ = scheme.rotate(q[6:], q[6:], fresh_step([40]))
    torch.testing.assert_close(together[6:], alone)


def test_qwen_ntk_steps() -> None:
    for length, alpha in ((8192, 1), (8193, 3), (16384, 3), (16385, 7), (32768, 7)):
        base = 1e4 * alpha ** (128 / 126)
        torch.testing.assert_close(
            QwenNTK(8192).frequencies(128, 1e4, length)[0], frequencies(128, base)
        )


def test_log_n_grows_queries_past_the_trained_length() -> None:
    q = torch.ones(20, 1, 4)
    grown, k = LogN(NoPosition(), 8).rotate(q, q, fresh_step([20]))
    assert torch.equal(k, q)
    expected = [max(1.0, math.log(i + 1) / math.log(8)) for i in range(20)]
    torch.testing.assert_close(grown[:, 0, 0], torch.tensor(expected))


@pytest.mark.parametrize("heads", [4, 8, 12, 16])
def test_alibi_equals_transformers(heads: int) -> None:
    theirs = build_alibi_tensor(torch.ones(1, 10), heads, torch.float32).view(heads, 10)
    torch.testing.assert_close(Alibi(heads).slopes()[:, None] * torch.arange(10), theirs)
    bias = Alibi(heads).bias(fresh_step([10]))(torch.arange(10), torch.arange(10))
    # BLOOM adds slope * key; rows differ by a constant, which softmax does not see.
    last = bias[:, 9] - bias[:, 9, :1]
    torch.testing.assert_close(last, theirs - theirs[:, :1])


@pytest.mark.parametrize("heads", [4, 6, 8])
def test_mpt_alibi_equals_transformers(heads: int) -> None:
    theirs = build_mpt_alibi_tensor(heads, 10, alibi_bias_max=8).view(heads, 10)
    slopes = Alibi(heads, order="mpt").slopes()
    torch.testing.assert_close(slopes[:, None] * torch.arange(-9, 1), theirs)


@pytest.mark.parametrize("both", [True, False])
def test_buckets_equal_t5(both: bool) -> None:
    q, k = torch.arange(300), torch.arange(300)
    theirs = T5Attention._relative_position_bucket(
        k[None] - q[:, None], bidirectional=both, num_buckets=32, max_distance=128
    )
    ours = BucketBias(heads=2, bidirectional=both).bucket(q, k)
    assert torch.equal(ours, theirs)


def test_sinusoids_in_both_layouts() -> None:
    marian = MarianSinusoidalPositionalEmbedding(50, 16)
    theirs = marian.create_weight() if hasattr(marian, "create_weight") else marian.weight
    positions = torch.arange(50)
    concat = Sinusoid(width=16, layout="concat").build()(positions)
    torch.testing.assert_close(concat, theirs.float(), atol=1e-6, rtol=1e-5)
    paper = Sinusoid(width=16).build()(positions)
    for pos, i in ((0, 0), (3, 2), (49, 7)):
        angle = pos / 10000 ** (2 * i / 16)
        assert float(paper[pos, 2 * i]) == pytest.approx(math.sin(angle), abs=1e-6)
        assert float(paper[pos, 2 * i + 1]) == pytest.approx(math.cos(angle), abs=1e-6)
