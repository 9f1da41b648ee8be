"""Losses on logits: each is here once."""

from __future__ import annotations

from torch import Tensor


def z_loss(logits: Tensor, *, weight: float = 1e-4, keep: Tensor | None = None) -> Tensor:
    """weight * mean(log(Z)^2), Z the softmax's normaliser: pulls log(Z) towards 0.

    Chowdhery et al. 2022 (PaLM), section 5, where it keeps training stable.

    Args:
        logits: (..., vocab); squared in float32 or wider.
        keep: (...) positions that count; None: all. Of none the loss is 0.

    Returns:
        A scalar. Its gradient at one of n positions is 2 * weight * log(Z) * softmax / n.
    """
    wide = logits if logits.element_size() > 4 else logits.float()
    squared = wide.logsumexp(-1).square()
    if keep is None:
        return weight * squared.mean()
    return weight * (squared * keep).sum() / keep.sum().clamp(min=1)
