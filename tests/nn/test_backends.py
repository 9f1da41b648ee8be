"""Attention's ways of computing agree: eager, fused, chunked with an online softmax; no leak."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from keifu.nn import attend as module
from keifu.nn.attend import attend
from keifu.nn.attention import Attention
from keifu.nn.kernels import native
from keifu.nn.kernels.program import Value
from keifu.nn.kernels.tape import Tape
from keifu.nn.masks import Causal, Full, Mask, Window
from keifu.nn.step import fresh_step
from tests.nn.test_tape import PAGE, Past, apply

MASKS: dict[str, Mask] = {"full": Full(), "causal": Causal(), "window": Causal() & Window(7)}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_backends_agree(mask: str, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """MATH is softmax(QK^T)V as written; FLASH walks the keys in chunks with a running maximum."""
    torch.manual_seed(0)
    n = 40
    q = torch.randn(2, n, 4, 16)
    k, v = torch.randn(2, n, groups, 16), torch.randn(2, n, groups, 16)
    at = torch.arange(n)

    def run() -> torch.Tensor:
        return attend(q, k, v, query_positions=at, key_positions=at, mask=MASKS[mask], scale=0.25)

    with sdpa_kernel(SDPBackend.MATH):
        eager = run()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        chunked = run()
    monkeypatch.setattr(module, "BLOCK", 11)
    blocks = run()
    for other in (chunked, blocks):
        torch.testing.assert_close(other, eager, atol=1e-5, rtol=0)


@pytest.mark.skipif(not native.available(), reason="the native kernels are not built")
def test_the_native_kernel_agrees() -> None:
    """The engine's own kernel: pages of keys, an online softmax, against eager attention."""
    heads, groups, width = 6, 2, 64
    past = Past(heads, groups, width, torch.float32)
    q, k, v = (torch.randn(5, n * width) for n in (heads, groups, groups))
    owners = [1, 0, 1, 1, 0]
    expected, lengths = past.expect(q, k, v, owners, scale=width**-0.5)

    def build(tape: Tape, x: Value) -> Value:
        parts = x.split(heads * width, groups * width, groups * width)
        return tape.attend(*parts, past.keys, past.values, page=PAGE, scale=width**-0.5)

    got = apply(build, torch.cat([q, k, v], 1), lengths=lengths, owners=owners, tables=[past.table])
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_token_changes_nothing_before_it_and_all_after() -> None:
    """All positions of a text are computed at once, and no later one is seen."""
    torch.manual_seed(0)
    part = Attention(width=32, heads=4, kv_heads=4, head_width=8, mask=Causal()).build()
    for p in part.parameters():
        torch.nn.init.normal_(p, 0, 0.3)
    x = torch.randn(12, 32)
    before = part(x, fresh_step([12]), None)
    for t in range(12):
        other = x.clone()
        other[t] += 1
        after = part(other, fresh_step([12]), None)
        assert torch.equal(after[:t], before[:t])
        assert not torch.isclose(after[t:], before[t:]).all(-1).any()
