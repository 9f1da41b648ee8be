"""Gist masks against the five-by-five examples of the authors' code (jayelm/gisting)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from keifu.nn.attention import Attention
from keifu.nn.masks import UNMARKED, Causal, Full, Gist, Landmarks, Mask, Severed, Window
from keifu.nn.state import StatePool
from keifu.nn.step import Step, fresh_step

ONE = Landmarks(gist=(3, 4))
"""a b c G d"""


def shown(mask: Mask, length: int, landmarks: Landmarks) -> list[str]:
    at = torch.arange(length)
    rows = mask.allowed(at[:, None], at[None], landmarks).int().tolist()
    return ["".join(map(str, row)) for row in rows]


def test_an_encoders_mask_is_the_published_example() -> None:
    expected = ["11110", "11110", "11110", "11110", "00011"]
    assert shown(Full() & Gist(), 5, ONE) == expected
    assert shown(Gist(), 5, ONE) == expected


def test_a_decoders_mask_is_the_published_example_and_causal() -> None:
    assert shown(Causal() & Gist(), 5, ONE) == ["10000", "11000", "11100", "11110", "00011"]


def test_the_negative_control_is_the_published_example() -> None:
    assert shown(Severed(), 5, ONE) == ["11110", "11110", "11110", "11110", "00001"]
    assert shown(Causal() & Severed(), 5, ONE) == ["10000", "11000", "11100", "11110", "00001"]


def test_two_gist_tokens_by_hand() -> None:
    """a G G d e: the prompt ends with the last gist token, and d, e see from the first on."""
    two = Landmarks(gist=(1, 3))
    assert shown(Gist(), 5, two) == ["11100", "11100", "11100", "01111", "01111"]
    assert shown(Severed(), 5, two) == ["11100", "11100", "11100", "00011", "00011"]
    assert shown(Causal() & Gist(), 5, two) == ["10000", "11000", "11100", "01110", "01111"]
    near = Causal() & Window(2) & Gist()
    assert shown(near, 5, two) == ["10000", "11000", "01100", "00110", "00011"]


def test_a_row_without_gist_tokens_is_left_as_it_is() -> None:
    assert shown(Causal() & Gist(), 3, UNMARKED) == ["100", "110", "111"]
    assert (Causal() & Gist()).given(UNMARKED) == Causal()
    assert (Causal() & Window(3) & Severed()).given(UNMARKED) == Causal() & Window(3)
    assert (Causal() & Gist()).given(ONE) == Causal() & Gist()
    with pytest.raises(ValueError, match="from 3 to 3 are none"):
        Landmarks(gist=(3, 3))


def dense(spec: Attention, x: Tensor, visible: Tensor, module: torch.nn.Module) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of one row, written out, in float64."""
    qkv = x.double() @ module.get_parameter("qkv.weight").double().T
    q, k, v = (t.unflatten(-1, (spec.heads, -1)).transpose(0, 1) for t in qkv.chunk(3, -1))
    scores = (q @ k.transpose(1, 2) / spec.head_width**0.5).masked_fill(~visible, float("-inf"))
    mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
    return mixed @ module.get_parameter("out.weight").double().T


@torch.no_grad()
@pytest.mark.parametrize(
    "kind", [Causal() & Gist(), Full() & Gist(), Causal() & Severed()], ids=str
)
def test_rows_with_landmarks_of_their_own_attend_as_their_masks_say(kind: Mask) -> None:
    torch.manual_seed(0)
    spec = Attention(width=16, heads=2, kv_heads=2, head_width=8, mask=kind)
    module = spec.build()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.3)
    marks = [ONE, UNMARKED, ONE, Landmarks(gist=(1, 3))]
    x = torch.randn(4, 5, 16)
    got = module(x.flatten(0, 1), fresh_step([5] * 4, landmarks=marks), None).unflatten(0, (4, 5))
    at = torch.arange(5)
    for row, mark in enumerate(marks):
        visible = kind.allowed(at[:, None], at[None], mark)
        expected = dense(spec, x[row], visible, module)
        torch.testing.assert_close(got[row].double(), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_encoder_may_stop_after_the_gist_tokens_and_nowhere_else() -> None:
    torch.manual_seed(0)
    spec = Attention(width=16, heads=2, kv_heads=2, head_width=8, mask=Full() & Gist())
    module, x = spec.build(), torch.randn(7, 16)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.3)
    whole = module(x, fresh_step([7], landmarks=[ONE]), None)

    def in_steps(*sizes: int) -> Tensor:
        pool = StatePool([spec.state()], budget=1 << 16, page=4)
        state, out = pool.open(), []
        for n in sizes:
            pool.reserve(state, n)
            at = torch.arange(state.length, state.length + n)
            step = Step(positions=at, offsets=(0, n), limits=(7,), landmarks=(ONE,))
            out.append(module(x[at], step, pool.handles([state], [n])[0]))
            pool.advance(state, n)
        return torch.cat(out)

    torch.testing.assert_close(in_steps(4, 3), whole, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="up to 2 run, and see those up to 3"):
        in_steps(3, 4)
    with pytest.raises(ValueError, match="up to 5 run, and see those up to 6"):
        in_steps(4, 2)
