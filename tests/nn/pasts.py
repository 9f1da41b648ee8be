"""State of requests in shuffled pages, and what attention over it should give."""

from __future__ import annotations

import torch
from torch import Tensor

from keifu.nn.forms import form

PAGE = 16


def coded(x: Tensor) -> Tensor:
    """What 8-bit codes with a scale a head keep of x."""
    most = x.abs().amax(-1, keepdim=True)
    return (x * (127 / most)).round() * (most / 127)


class Past:
    """State of several requests in shuffled pages, and dense attention over it in float64."""

    def __init__(self, heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> None:
        self.heads, self.kv_heads, self.width = heads, kv_heads, width
        self.kept, room = (lambda x: coded(x) if dtype == torch.int8 else x.to(dtype)), 160 * PAGE
        forms = [form((kv_heads, width), dtype, reading) for reading in ("keys", "values")]
        self.keys, self.values = (f.empty(room, torch.device("cpu")) for f in forms)
        for state in (self.keys, self.values):  # NaN in any type, of scales too
            state.view(torch.uint8).fill_(255)
        self.table = torch.randperm(160).to(torch.int32).view(2, 80).numpy()
        self.past = [self.kept(torch.randn(2, n, kv_heads, width)) for n in (70, 1100)]
        for owner, (k, v) in enumerate(self.past):
            at = torch.arange(len(k))
            slots = torch.from_numpy(self.table[owner])[at // PAGE].long() * PAGE + at % PAGE
            for f, state, new in zip(forms, (self.keys, self.values), (k, v), strict=True):
                f.put(state, slots, new)

    def expect(
        self, q: Tensor, k: Tensor, v: Tensor, owners: list[int], **options: object
    ) -> tuple[Tensor, list[int]]:
        """Rows one after another: each joins its request, then attends to all of it."""
        past = [p.double() for p in self.past]
        outs, lengths = [], []
        for row, owner in enumerate(owners):
            new = torch.stack((k[row], v[row])).view(2, 1, self.kv_heads, self.width)
            past[owner] = torch.cat([past[owner], self.kept(new).double()], 1)
            lengths.append(past[owner].shape[1])
            outs.append(self._one(q[row].double(), past[owner], **options))  # type: ignore[arg-type]
        return torch.stack(outs), lengths

    def _one(
        self,
        q: Tensor,
        past: Tensor,
        scale: float,
        softcap: float | None = None,
        slopes: Tensor | None = None,
        window: int | None = None,
        sinks: int = 0,
    ) -> Tensor:
        n, share = past.shape[1], self.heads // self.kv_heads
        k, v = past.repeat_interleave(share, 2)
        scores = torch.einsum("hd,nhd->hn", q.view(self.heads, -1), k) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        at = torch.arange(n)
        if slopes is not None:
            scores = scores - slopes[:, None] * (n - 1 - at)
        if window is not None:
            scores[:, (at < n - window) & (at >= sinks)] = float("-inf")
        return torch.einsum("hn,nhd->hd", scores.softmax(-1), v).flatten()


def alike(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Near; over codes, queries and weights are codes, too, and the code of a number between two
    may be either (a product and a sum in one instruction round once)."""
    if dtype == torch.int8:
        off = (got.double() - expected).abs()
        assert (off > 2e-4).float().mean() < 0.01
        assert off.max() < 0.02
    else:
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=2e-5)
