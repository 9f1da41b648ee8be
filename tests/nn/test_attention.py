"""Attention against torch's own module, a dense float64 equation, and its state."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from keifu.nn.attend import attend
from keifu.nn.attention import Attention, CrossAttention
from keifu.nn.masks import Causal, Full, Landmarks, Mask, Prefix, Window
from keifu.nn.norms import LayerNorm, PerHeadNorm, RMSNorm
from keifu.nn.part import Part
from keifu.nn.positions import Alibi, Position
from keifu.nn.rotary import Rotary
from keifu.nn.state import StatePool
from keifu.nn.step import Step, fresh_step


def dense(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, bias: Tensor, softcap: float | None
) -> Tensor:
    """The equation, written a second time, slowly, in float64: (n, heads, width)."""
    heads, share = q.shape[1], q.shape[1] // k.shape[1]
    out = torch.zeros(q.shape[0], heads, v.shape[2], dtype=torch.float64)
    for i, h in itertools.product(range(q.shape[0]), range(heads)):
        scores = []
        for j in range(k.shape[0]):
            s = float(q[i, h].double() @ k[j, h // share].double()) / math.sqrt(q.shape[2])
            if softcap is not None:
                s = softcap * math.tanh(s / softcap)
            scores.append(s + float(bias[h, i, j]) if visible[i, j] else -math.inf)
        weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
        out[i, h] = weights @ v[:, h // share].double()
    return out


MASKS: dict[str, Mask] = {
    "causal": Causal(),
    "full": Full(),
    "window": Causal() & Window(3),
    "sinks": Causal() & Window(3, keep=2),
    "prefix": Causal() | Prefix(),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("biased", [True, False])
def test_attend_equals_the_equation(
    mask: str, groups: int, softcap: float | None, biased: bool
) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(5, 4, 8), torch.randn(9, groups, 8), torch.randn(9, groups, 6)
    at, held = torch.arange(4, 9), torch.arange(9)
    bias = torch.randn(4, 5, 9) if biased else torch.zeros(4, 5, 9)
    visible = MASKS[mask].allowed(at[:, None], held[None], Landmarks(prefix=7))
    got = attend(
        q[None],
        k[None],
        v[None],
        query_positions=at,
        key_positions=held,
        mask=MASKS[mask],
        scale=8**-0.5,
        bias=(lambda a, b: bias) if biased else None,
        softcap=softcap,
        landmarks=Landmarks(prefix=7),
    )[0]
    expected = dense(q, k, v, visible, bias, softcap)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)


def test_masks_equal_brute_force() -> None:
    for q, k in itertools.product(range(8), range(8)):
        query, key = torch.tensor([[q]]), torch.tensor([[k]])
        assert bool(Causal().allowed(query, key)) == (k <= q)
        assert bool((Causal() & Window(3)).allowed(query, key)) == (q - 2 <= k <= q)
        sinks = Causal() & Window(3, keep=2)
        assert bool(sinks.allowed(query, key)) == (k <= q and (k < 2 or k >= q - 2))
        assert bool((Causal() | Prefix()).allowed(query, key, Landmarks(prefix=4))) == (
            k <= q or k < 4
        )
    assert (Causal() & Window(3)).back == 3
    assert not (Causal() & Window(3)).ahead


@torch.no_grad()
def test_equals_torch_multihead_attention() -> None:
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True).eval()
    spec = Attention(
        width=32, heads=4, kv_heads=4, head_width=8, mask=Full(), qkv_bias=True, out_bias=True
    )
    ours = spec.build()
    ours.load_state_dict(
        {
            "qkv.weight": theirs.in_proj_weight,
            "qkv.bias": theirs.in_proj_bias,
            "out.weight": theirs.out_proj.weight,
            "out.bias": theirs.out_proj.bias,
        }
    )
    x = torch.randn(3, 7, 32)
    got = ours(x.flatten(0, 1), fresh_step([7] * 3), None).unflatten(0, (3, 7))
    torch.testing.assert_close(got, theirs(x, x, x)[0], atol=1e-5, rtol=1e-5)
    shut = torch.triu(torch.ones(7, 7, dtype=torch.bool), 1)
    causal = Attention(
        width=32, heads=4, kv_heads=4, head_width=8, qkv_bias=True, out_bias=True
    ).build()
    causal.load_state_dict(ours.state_dict())
    got = causal(x.flatten(0, 1), fresh_step([7] * 3), None).unflatten(0, (3, 7))
    expected = theirs(x, x, x, attn_mask=shut)[0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def stepped(spec: Part, x: Tensor, splits: list[int]) -> Tensor:
    """Two rows run through a state pool in the given chunks: x (2, time, width)."""
    part = spec.build()
    for i, p in enumerate(part.parameters()):
        torch.nn.init.normal_(p, 0, 0.3, generator=torch.Generator().manual_seed(i))
    whole = part(x.flatten(0, 1), fresh_step([x.shape[1]] * 2), None)
    pool = StatePool([spec.state()], budget=1 << 20, page=4)
    states, got, at = [pool.open(), pool.open()], [], 0
    for n in splits:
        for state in states:
            pool.reserve(state, n)
        positions = torch.arange(at, at + n).repeat(2)
        step = Step(positions=positions, offsets=(0, n, 2 * n), limits=(x.shape[1],) * 2)
        (handle,) = pool.handles(states, [n, n])
        got.append(part(x[:, at : at + n].flatten(0, 1), step, handle).unflatten(0, (2, n)))
        for state in states:
            pool.advance(state, n)
        at += n
    torch.testing.assert_close(
        torch.cat(got, 1), whole.unflatten(0, x.shape[:2]), atol=1e-4, rtol=1e-4
    )
    return whole


POSITIONS: dict[str, Position] = {"rotary": Rotary(8), "alibi": Alibi(4)}


@torch.no_grad()
@pytest.mark.parametrize("mask", ["causal", "window", "sinks"])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_any_split_equals_the_whole(mask: str, position: str, kv_heads: int) -> None:
    spec = Attention(
        width=16, heads=4, kv_heads=kv_heads, head_width=8,
        position=POSITIONS[position], mask=MASKS[mask],
        q_norm=RMSNorm(width=8), k_norm=RMSNorm(width=8), clip=1.5,
    )  # fmt: skip
    stepped(spec, torch.randn(2, 23, 16), [4, 1, 1, 9, 1, 2, 1, 4])


@torch.no_grad()
def test_norms_of_whole_projections_and_of_single_heads() -> None:
    x = torch.randn(2, 6, 16)
    base = {"width": 16, "heads": 4, "kv_heads": 2, "head_width": 8}
    whole = Attention(**base, q_norm=LayerNorm(width=32), k_norm=LayerNorm(width=16))
    heads = Attention(
        **base, q_norm=PerHeadNorm(heads=4, width=8), k_norm=PerHeadNorm(heads=2, width=8)
    )
    assert not torch.allclose(stepped(whole, x, [6]), stepped(heads, x, [3, 3]))


@torch.no_grad()
def test_a_window_keeps_no_more_than_it_needs() -> None:
    spec = Attention(width=16, heads=2, kv_heads=2, head_width=8, mask=Causal() & Window(8, keep=2))
    pool = StatePool([spec.state()], budget=1 << 20, page=4)
    state = pool.open()
    free = pool.free_tokens
    for _ in range(100):
        pool.reserve(state, 1)
        (handle,) = pool.handles([state], [1])
        handle.append("k", torch.full((1, 2, 8), float(state.length)))
        values, positions = handle.read("k", 0)
        expected = [p for p in range(state.length + 1) if p < 2 or p > state.length - 8]
        assert positions.tolist() == expected
        assert values[:, 0, 0].tolist() == [float(p) for p in expected]
        pool.advance(state, 1)
        assert free - pool.free_tokens <= 8 + 3 * 4


@torch.no_grad()
def test_cross_attention_reads_each_rows_own_memory() -> None:
    spec = CrossAttention(width=16, heads=2, head_width=8, memory_width=12, bias=True)
    part = spec.build()
    for p in part.parameters():
        torch.nn.init.normal_(p, 0, 0.3)
    x, memories = torch.randn(7, 16), (torch.randn(5, 12), torch.randn(9, 12))
    got = part(x, fresh_step([4, 3], memories={"encoder": memories}), None)
    first = part(x[:4], fresh_step([4], memories={"encoder": memories[:1]}), None)
    torch.testing.assert_close(got[:4], first)
    theirs = torch.nn.MultiheadAttention(16, 2, kdim=12, vdim=12, batch_first=True)
    k, v = part.kv.weight.chunk(2)
    theirs.load_state_dict(
        {
            "q_proj_weight": part.q.weight, "k_proj_weight": k, "v_proj_weight": v,
            "in_proj_bias": torch.cat([part.q.bias, part.kv.bias]),
            "out_proj.weight": part.out.weight, "out_proj.bias": part.out.bias,
        }
    )  # fmt: skip
    expected = theirs(x[None, 4:], memories[1][None], memories[1][None])[0][0]
    torch.testing.assert_close(got[4:], expected, atol=1e-5, rtol=1e-5)
