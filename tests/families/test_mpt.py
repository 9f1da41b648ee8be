"""MPT against transformers; the options that it lacks there against slow float64 equations."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MptConfig, MptForCausalLM
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from keifu.core.errors import ConfigError
from keifu.families.mpt import MPT
from keifu.nn.masks import Landmarks
from keifu.nn.positions import Alibi
from keifu.nn.stack import StackModule
from keifu.nn.state import StatePool
from keifu.nn.step import Step, fresh_step
from tests.families.parity import both_ways, converted, randomise, tokens

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"clip_qkv": 0.5},
    "scaled": {"softmax_scale": 0.2},
    "three-heads": {"heads": 3},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_parity(option: str, tmp_path: Path) -> None:
    settings = dict(OPTIONS[option])
    heads = settings.pop("heads", 4)
    config = MptConfig(
        vocab_size=96, d_model=8 * heads, n_heads=heads, n_layers=2, max_seq_len=64,
        attn_config=settings,
    )  # fmt: skip
    both_ways(MPT, MptForCausalLM(config), tmp_path / "m")


@pytest.mark.parametrize(("heads", "most"), [(32, 8), (12, 8), (64, 16), (7, 16)])
def test_slopes_are_exact(heads: int, most: int) -> None:
    theirs: Any = build_mpt_alibi_tensor  # it is untyped
    theirs = theirs(heads, 9, alibi_bias_max=most).view(heads, 9)
    slopes = Alibi(heads, max_bias=most, order="mpt").slopes()
    assert torch.equal(slopes[:, None] * torch.arange(-8, 1), theirs)


@torch.no_grad()
def test_it_runs_beyond_the_trained_length() -> None:
    """ALiBi has no table that ends: 50 positions of a model made for 16 = one made for 64."""
    config = MptConfig(vocab_size=96, d_model=32, n_heads=4, n_layers=2, max_seq_len=64)
    theirs: Any = MptForCausalLM(config)
    randomise(theirs.eval())
    ours = converted(MPT.from_hf({**config.to_dict(), "max_seq_len": 16}), theirs)
    ids = tokens(96, 2, 50)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)


def slow_slopes(heads: int, most: float) -> Tensor:
    """2^(-most * i / n) for i = 1 ... n, the next power of two; every second first if n > heads."""
    n = 1 << (heads - 1).bit_length()
    steps = [2.0 ** (-most * i / n) for i in range(1, n + 1)]
    return torch.tensor((steps[1::2] + steps[::2])[:heads] if n > heads else steps).double()


def slow(model: StackModule, family: MPT, ids: Tensor, prefix: int) -> Tensor:
    """The whole network in float64, one head and one query at a time."""
    weights = {n: p.double() for n, p in model.named_parameters()}

    def norm(x: Tensor, name: str) -> Tensor:
        y = x - x.mean(-1, keepdim=True)
        y = y / (y.pow(2).mean(-1, keepdim=True) + family.eps).sqrt()
        return y * weights[f"{name}.weight"]

    x = weights["input.table.weight"][ids]
    size, slopes = family.head_size, slow_slopes(family.heads, family.max_bias)
    for layer in range(family.depth):
        at = f"blocks.{layer}"
        qkv = norm(x, f"{at}.norms.mixer_norm") @ weights[f"{at}.mixer.qkv.weight"].T
        q, k, v = qkv.clamp(-(family.clip or math.inf), family.clip or math.inf).chunk(3, -1)
        q, k = norm(q, f"{at}.mixer.q_norm"), norm(k, f"{at}.mixer.k_norm")
        mixed = torch.zeros_like(x)
        for head in range(family.heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(len(ids)):
                seen = [j for j in range(len(ids)) if j <= i or j < prefix]
                scores = k[seen][:, part] @ q[i, part] / math.sqrt(size)
                scores = scores - slopes[head] * (i - torch.tensor(seen))
                mixed[i, part] = scores.softmax(0) @ v[seen][:, part]
        x = x + mixed @ weights[f"{at}.mixer.out.weight"].T
        up = norm(x, f"{at}.norms.mlp_norm") @ weights[f"{at}.mlp.up.weight"].T
        gelu = up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
        x = x + gelu @ weights[f"{at}.mlp.down.weight"].T
    return norm(x, "norm") @ weights["input.table.weight"].T


def made(most: int = 8) -> tuple[MPT, StackModule]:
    family = replace(MPT.tiny(), width=24, heads=3, max_bias=most)
    model = family.spec().build()
    assert isinstance(model, StackModule)
    torch.manual_seed(2)
    model.initialise(seed=1, std=0.3)
    for name, p in model.named_parameters():
        if "norm" in name:
            p.data.add_(torch.randn(p.shape) * 0.2)
    return family, model.eval()


@torch.no_grad()
@pytest.mark.parametrize(("prefix", "most"), [(0, 8), (6, 16)])
def test_normed_queries_and_a_prefix_equal_the_slow_equations(prefix: int, most: int) -> None:
    """Also StoryWriter's steeper slopes, which the class in transformers does not read."""
    family, model = made(most)
    ids = tokens(96, 1, 11)[0]
    step = fresh_step([11], landmarks=[Landmarks(prefix=prefix)])
    logits = model.run(ids, step).logits
    assert logits is not None
    expected = slow(model, family, ids, prefix)
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(slow(model, family, ids, 6 - prefix), expected, atol=1e-2)


@torch.no_grad()
def test_a_prefix_is_cached_if_it_comes_in_one_step() -> None:
    _, model = made()
    ids = tokens(96, 1, 11)[0]
    mark = Landmarks(prefix=6)
    whole = model.run(ids, fresh_step([11], landmarks=[Landmarks(prefix=6)])).logits
    pool = StatePool(model.spec.entries(), budget=1 << 20, page=4)
    state = pool.open()
    got: list[Tensor] = []
    for start, n in ((0, 6), (6, 3), (9, 1), (10, 1)):
        pool.reserve(state, n)
        positions = torch.arange(start, start + n)
        step = Step(positions=positions, offsets=(0, n), limits=(11,), landmarks=(mark,))
        logits = model.run(ids[start : start + n], step, pool.handles([state], [n])).logits
        assert logits is not None
        got.append(logits)
        pool.advance(state, n)
    torch.testing.assert_close(torch.cat(got), whole, atol=1e-4, rtol=1e-4)
    state = pool.open()
    pool.reserve(state, 4)
    step = Step(positions=torch.arange(4), offsets=(0, 4), limits=(11,), landmarks=(mark,))
    with pytest.raises(ValueError, match="up to 3 run, and see those up to 5"):
        model.run(ids[:4], step, pool.handles([state], [4]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attn_config": {"alibi": False}}, "alibi=False is not supported"),
        ({"attn_config": {"alibbi": True}}, "unknown key 'alibbi'"),
        ({"no_bias": False}, "no_bias=False"),
        ({"norm_type": "rmsnorm"}, "norm_type='rmsnorm'"),
        ({"logit_scale": "inv_sqrt_d_model"}, "logit_scale"),
    ],
)
def test_what_it_lacks_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MPT.from_hf(settings)
