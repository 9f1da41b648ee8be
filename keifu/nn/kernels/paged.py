"""Paged state as a tape's attention reads it: what its tensors say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from keifu.nn.forms import TILE

FLOAT, EIGHT = 1 << 5, 1 << 9
"""Flags of operations on state: float32, 8-bit codes."""
WIDEST_HEAD = 512
_KINDS = {torch.bfloat16: 0, torch.float32: FLOAT, torch.uint8: EIGHT}


@dataclass(frozen=True)
class Paged:
    """Keys and values of all requests: how they are kept, heads, their width, pages."""

    flag: int
    kv_heads: int
    head: int
    pages: int


def paged(keys: Tensor, values: Tensor, page: int, *, q: int, kv: int) -> Paged:
    """State that keys and values `kv` wide go into, and queries `q` wide meet.

    Args:
        keys, values: (slots, kv_heads, head_width) bfloat16 or float32, or the codes of
            `forms.Coded`, TILE slots in one.
        page: slots of a page.

    Raises:
        ValueError: they do not fit.
    """
    if keys.dtype != values.dtype or keys.dtype not in _KINDS:
        raise ValueError(f"state must be bfloat16, float32 or codes, not {keys.dtype}")
    codes, (places, kv_heads, each) = keys.dtype == torch.uint8, keys.shape
    head = kv // kv_heads if codes else each
    fits = kv == kv_heads * head and q % max(kv, 1) == 0 and head <= WIDEST_HEAD
    if codes:
        fits &= each == TILE * (-(-head // TILE) * TILE + 4) and page % TILE == 0
    if not fits or page & (page - 1):
        raise ValueError(
            f"q {q}, k and v {kv} over state {tuple(keys.shape)} in pages of {page}: needs whole "
            f"heads of at most {WIDEST_HEAD} and a power of two"
        )
    return Paged(_KINDS[keys.dtype], kv_heads, head, places * (TILE if codes else 1) // page)
