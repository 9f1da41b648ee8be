"""Scaled dot-product attention of one block of rows: the only place it is computed in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from keifu.nn.kernels import trained
from keifu.nn.masks import UNMARKED, Causal, Full, Landmarks, Mask

Bias = Callable[[Tensor, Tensor], Tensor]
"""Query positions (n,), key positions (m,) -> (heads, n, m) added to the scores, or
(rows, heads, n, m) where it depends on the row."""

BLOCK = 512
"""Queries whose mask and bias are dense at once: memory grows with this times the keys."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    query_positions: Tensor,
    key_positions: Tensor,
    mask: Mask,
    scale: float,
    bias: Bias | None = None,
    softcap: float | None = None,
    landmarks: Landmarks = UNMARKED,
) -> Tensor:
    """softmax(scale * q k^T + bias, masked) v (Vaswani et al. 2017, eq. 1), in blocks of queries.

    Args:
        q: (rows, n, heads, width); k, v: (rows, m, groups, width), heads a multiple of groups.
        query_positions: (n,), key_positions: (m,), both rising; or (rows, n) and (rows, m), each
            row's own, where keys at positions beyond the query's are none at all.
        landmarks: of the rows, which have them in common.
        softcap: scores become softcap * tanh(scores / softcap) before the mask (Gemma 2).

    Returns:
        (rows, n, heads, value width)
    """
    rows, n, heads, _ = q.shape
    mask = mask.given(landmarks)
    m, groups = k.shape[1], k.shape[2]
    alone = query_positions.dim() == 1
    causal = n == m and isinstance(mask, Causal) and alone and softcap is None and bias is None
    if causal and n > 1 and trained.attends(q, k, v):
        return trained.causal_attention(q, k, v, scale)
    # A group's queries share keys: (rows, groups, 1, m, width) broadcast by stride, never copied.
    q = q.unflatten(2, (groups, heads // groups)).permute(0, 2, 3, 1, 4)
    k = k.transpose(1, 2).unsqueeze(2)
    v = v.transpose(1, 2).unsqueeze(2)
    if n == 1 and bias is None:
        seen = _seen(mask, query_positions, key_positions, landmarks)
        if seen is None or seen.dim() == 3:
            out = _decode_one(q, k, v, scale, softcap, seen)
            return out.permute(0, 3, 1, 2, 4).flatten(2, 3)
    blocks = []
    size = n if causal else BLOCK
    for start in range(0, n, size):
        stop = min(start + size, n)
        at = query_positions[..., start:stop]
        visible = None
        if not isinstance(mask, Full) and not causal:
            visible = mask.allowed(at[..., :, None], key_positions[..., None, :], landmarks)
            visible = visible if visible.dim() == 2 else visible[:, None, None]
        added = bias(at, key_positions) if bias is not None else None
        part = q[:, :, :, start:stop]
        blocks.append(_block(part, k, v, visible, added, causal, scale, softcap))
    out = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=3)
    return out.permute(0, 3, 1, 2, 4).flatten(2, 3).reshape(rows, n, heads, v.shape[-1])


def _seen(mask: Mask, query: Tensor, key: Tensor, landmarks: Landmarks) -> Tensor | None:
    """Which keys one query a row sees: (rows, 1, m) or (1, m); None: all, told without reading
    tensors where possible."""
    own = query.dim() == 2
    if isinstance(mask, Full | Causal) and not own:
        return None
    seen = mask.allowed(query[..., :, None], key[..., None, :], landmarks)
    return seen if own or not bool(seen.all()) else None


def _decode_one(
    q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None, seen: Tensor | None
) -> Tensor:
    """One query a row: a group's heads become the queries of one product. seen: (rows, 1, m)."""
    q, visible = q.squeeze(3), None if seen is None else seen[:, None]
    if softcap is None:
        out = F.scaled_dot_product_attention(
            q, k.squeeze(2), v.squeeze(2), attn_mask=visible, scale=scale
        )
    else:
        scores = softcap * torch.tanh(q @ k.squeeze(2).transpose(-1, -2) * scale / softcap)
        if visible is not None:
            scores = scores.masked_fill(~visible, float("-inf"))
        out = scores.float().softmax(-1).to(v.dtype) @ v.squeeze(2)
    return out.unsqueeze(3)


def _block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    added: Tensor | None,
    causal: bool,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """One block: q (rows, groups, share, n, width), k and v (rows, groups, 1, m, width); visible
    (n, m) or (rows, 1, 1, n, m)."""
    rows, groups, share, n, width = q.shape
    if added is not None:
        added = added.unflatten(-3, (groups, share)).to(q.dtype)
    if softcap is not None:
        scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * scale / softcap)
        if added is not None:
            scores = scores + added
        if visible is not None:
            scores = scores.masked_fill(~visible, float("-inf"))
        return scores.float().softmax(-1).to(v.dtype) @ v
    # Stride-0 heads let the flash kernel share keys inside a group.
    q4 = q.reshape(rows * groups, share, n, width)
    k4 = k.expand(-1, -1, share, -1, -1).flatten(0, 1)
    v4 = v.expand(-1, -1, share, -1, -1).flatten(0, 1)
    bias = visible
    if bias is not None and bias.dim() > 2:
        bias = bias.expand(-1, groups, -1, -1, -1).flatten(0, 1)
    if added is not None:
        bias = added if visible is None else added.masked_fill(~visible, float("-inf"))
        bias = bias.expand(rows, -1, -1, -1, -1).flatten(0, 1)
    out = F.scaled_dot_product_attention(q4, k4, v4, attn_mask=bias, is_causal=causal, scale=scale)
    return out.view(rows, groups, share, n, v.shape[-1])
