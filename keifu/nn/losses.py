"""Losses on logits: each is here once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from keifu.nn.linear_loss import IGNORE as IGNORE
from keifu.nn.linear_loss import LinearLoss as LinearLoss
from keifu.nn.linear_loss import linear_cross_entropy as linear_cross_entropy


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


def balance(scores: Tensor, chosen: Tensor) -> Tensor:
    """experts * sum_i f_i P_i: 1 where every expert is as likely and as often chosen as any other.

    Fedus et al. 2021 (Switch Transformers), equations 4 to 6, without their weight. f_i is the
    share of tokens that chose expert i, so with k choices a token (Mixtral) it is k when even.

    Args:
        scores: (tokens, experts), a router's; P_i is the mean of their softmax.
        chosen: (choices,) expert numbers, all tokens' together; no gradient passes through them.

    Returns:
        A scalar.
    """
    tokens, experts = scores.shape
    share = torch.bincount(chosen, minlength=experts) / tokens
    return experts * (share * scores.softmax(-1).mean(0)).sum()


def cross_entropy(
    logits: Tensor, labels: Tensor, *, smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """-log p(label), summed over the items whose label is not IGNORE.

    With smoothing e the label's probability is 1 - e and e is spread evenly over all classes
    (Szegedy et al. 2016, section 7; Vaswani et al. 2017, section 5.4).

    Args:
        logits: (..., classes); float32 or wider inside.
        labels: (...) class indices.
        weights: (...) of the items; None: all count alike.

    Returns:
        A scalar.
    """
    wide = logits if logits.element_size() > 4 else logits.float()
    found = F.cross_entropy(
        wide.flatten(0, -2),
        labels.flatten(),
        ignore_index=IGNORE,
        label_smoothing=smoothing,
        reduction="sum" if weights is None else "none",
    )
    return found if weights is None else (found * weights.flatten()).sum()


def divergence(logits: Tensor, target: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 * KL(softmax(target / T) || softmax(logits / T)), summed over items.

    Hinton et al. 2015, arXiv 1503.02531, section 2: the factor keeps gradients of one size.

    Args:
        logits, target: (..., classes); float32 or wider inside. The target has no gradient.
    """
    wide = logits if logits.element_size() > 4 else logits.float()
    own = (wide / temperature).log_softmax(-1)
    wanted = (target.detach().to(wide.dtype) / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(own, wanted, log_target=True, reduction="sum")


def info_nce(scores: Tensor, positive: Tensor) -> Tensor:
    """-log of the positive's share among a row's scores, summed over rows.

    van den Oord et al. 2018, arXiv 1807.03748, equation 4.

    Args:
        scores: (rows, candidates), already over the temperature.
        positive: (rows,) which candidate is the right one.
    """
    return cross_entropy(scores, positive)


def ctc(
    log_probs: Tensor,
    targets: Tensor,
    lengths: Tensor,
    target_lengths: Tensor,
    *,
    blank: int = 0,
    zero_infinity: bool = False,
) -> Tensor:
    """-log of the probability of each row's labels, summed over all their alignments.

    Graves et al. 2006, sections 3 and 4.1, in log space: a path gives each frame a label or the
    blank; equal neighbours are one label, blanks are none.

    Args:
        log_probs: (time, rows, classes), float32 or wider inside.
        targets: (rows, longest) labels, none of them the blank; what is beyond a row's own length
            does not matter.
        lengths: (rows,) frames, 1 or more; target_lengths: (rows,) labels, 0 or more.
        zero_infinity: a row with too few frames for its labels has loss 0 instead of infinity.
            Its gradient is 0 either way.

    Returns:
        (rows,). A frame's gradient is minus the probability, given the labels, of each class there.
    """
    wide = log_probs if log_probs.element_size() > 4 else log_probs.float()
    losses: Tensor = _CTC.apply(wide, targets, lengths, target_lengths, blank)  # type: ignore[no-untyped-call]
    return torch.where(losses.isinf(), 0.0, losses) if zero_infinity else losses


class _CTC(torch.autograd.Function):
    """Forward variables in `forward`, backward variables and the gradient in `backward`."""

    @staticmethod
    def forward(
        ctx: Any, log_probs: Tensor, targets: Tensor, lengths: Tensor, counts: Tensor, blank: int
    ) -> Tensor:
        rows, most = targets.shape
        states = targets.new_full((rows, 2 * most + 1), blank)  # blank, l1, blank, l2, ..., blank
        inside = torch.arange(most, device=targets.device) < counts[:, None]
        states[:, 1::2] = torch.where(inside, targets, blank)
        skip = torch.zeros_like(states, dtype=torch.bool)  # a blank between unlike labels
        skip[:, 3::2] = (states[:, 3::2] != states[:, 1:-2:2]) & inside[:, 1:]
        seen = log_probs.gather(2, states.expand(log_probs.shape[0], -1, -1))
        place = torch.arange(2 * most + 1, device=targets.device)
        alpha = torch.full_like(seen, NOTHING)
        alpha[0] = torch.where(place < 2, seen[0], NOTHING)
        for t in range(1, seen.shape[0]):
            alpha[t] = _arrive(alpha[t - 1], skip) + seen[t]
        ends = (place == 2 * counts[:, None]) | (place == 2 * counts[:, None] - 1)
        last = alpha[lengths - 1, torch.arange(rows, device=targets.device)]
        total = torch.where(ends, last, NOTHING).logsumexp(-1)
        ctx.save_for_backward(alpha, seen, states, skip, ends, lengths, total)
        ctx.classes = log_probs.shape[2]
        return -total

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None, None, None, None]:
        alpha, seen, states, skip, ends, lengths, total = ctx.saved_tensors
        first = torch.where(ends, 0.0, NOTHING).to(alpha.dtype)
        turned = skip.flip(1).roll(2, 1)  # on the way back a step skips where it arrived
        turned[:, :2] = False
        beta, ahead = torch.full_like(alpha, NOTHING), torch.full_like(first, NOTHING)
        for t in range(seen.shape[0] - 1, -1, -1):
            back = _arrive(ahead.flip(1), turned).flip(1)
            beta[t] = torch.where((lengths == t + 1)[:, None], first, back)
            ahead = beta[t] + seen[t]
        reached = total.isfinite()[:, None]
        share = torch.where(reached, alpha + beta - total[:, None], NOTHING).exp()
        gradient = alpha.new_zeros(*alpha.shape[:2], ctx.classes)
        gradient.scatter_add_(2, states.expand(alpha.shape[0], -1, -1), -share * weight[:, None])
        return gradient, None, None, None, None


NOTHING = float("-inf")
"""The logarithm of no probability."""


def _arrive(before: Tensor, skip: Tensor) -> Tensor:
    """Log-probability of reaching each state (rows, states) by staying, by one step, by a skip."""
    one = F.pad(before[:, :-1], (1, 0), value=NOTHING)
    two = F.pad(before[:, :-2], (2, 0), value=NOTHING).masked_fill(~skip, NOTHING)
    return torch.logaddexp(torch.logaddexp(before, one), two)
