"""Cross-entropy of a product's rows, without ever holding the logits of all of them.

The gradient is made in the forward pass, chunk after chunk of tokens, and only those of the states
and of the matrix are kept: Liger Kernel (Hsu et al. 2024, arXiv 2410.10989, section 3.2) and Cut
Cross-Entropy (Wijmans et al. 2024, arXiv 2411.09009) do the same on a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from keifu.nn.kernels import trained
from keifu.nn.projection import Projection, Spread

IGNORE = -100
"""The label of an item that does not count."""
CHUNK, FEWEST, HALF = 1 << 22, 128, 1 << 24
"""Logits held at once, the tokens that a chunk has at least; logits in bfloat16 held at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearLoss:
    """Sums over the tokens that count."""

    total: Tensor
    """Scalar with a gradient: cross-entropy and z together."""
    z: Tensor
    """Scalar: z's part of it."""
    right: Tensor
    """Scalar: tokens whose label has the highest logit."""


@dataclass(frozen=True, kw_only=True)
class _How:
    scale: float
    softcap: float | None
    smoothing: float
    z: float
    rows: int
    spread: Spread | None
    learn: bool

    @property
    def plain(self) -> bool:
        """Whether logits are the product and no more, all of them here."""
        return self.scale == 1.0 and self.softcap is None and self.spread is None


def linear_cross_entropy(
    given: Projection,
    labels: Tensor,
    *,
    smoothing: float = 0.0,
    z: float = 0.0,
    rows: int | None = None,
) -> LinearLoss:
    """sum_t -log softmax(logits_t)[label_t] + z * log(Z_t)^2, the logits made in chunks.

    Equals `cross_entropy` and `z_loss` of the whole logits, and so do the gradients of `x`,
    `weight` and `bias`; sums are in float32 or wider, the products in the weight's precision.

    Args:
        labels: (tokens,) ids of the whole vocabulary, or IGNORE.
        smoothing: of the labels, evenly over all classes (Szegedy et al. 2016, section 7).
        z: weight of the z-loss (Chowdhery et al. 2022, section 5), a sum here.
        rows: tokens of a chunk; None: so many that `CHUNK` logits are held.
    """
    size = given.weight.shape[0]
    how = _How(
        scale=given.scale,
        softcap=given.softcap,
        smoothing=smoothing,
        z=z,
        rows=rows or max(FEWEST, CHUNK // size),
        spread=given.spread,
        learn=torch.is_grad_enabled(),
    )
    total, squared, right = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        given.x, given.weight, given.bias, given.shift, labels, how
    )
    return LinearLoss(total=total, z=squared, right=right)


class _LinearCrossEntropy(torch.autograd.Function):
    """Everything in `forward`; `backward` scales what it kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        shift: Tensor | None,
        labels: Tensor,
        how: _How,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if how.plain and bias is None and shift is None and trained.fuses(x):
            return _fused(ctx, x, weight, labels, how)
        wide = torch.promote_types(weight.dtype, torch.float32)
        wanted = [how.learn and needed for needed in ctx.needs_input_grad[:3]]
        grads = [
            torch.zeros_like(part) if part is not None and want else None
            for part, want in zip((x, weight, bias), wanted, strict=True)
        ]
        sums = torch.zeros(2, dtype=wide, device=x.device)
        right = torch.zeros((), dtype=torch.long, device=x.device)
        for start in range(0, x.shape[0], how.rows):
            span = slice(start, start + how.rows)
            some = x[span].to(weight.dtype)
            logits = (some @ weight.T).to(wide)
            if bias is not None:
                logits += bias.to(wide)
            told = _Chunk(logits, shift, labels[span], how)
            sums += told.sums
            right += told.right
            if any(wanted):
                slope = told.slope().to(weight.dtype)
                _added(grads, span, slope, some, weight)
        if how.spread is not None and grads[0] is not None:
            grads[0] = how.spread.sum(grads[0])
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(sums[1], right)
        return sums[0], sums[1], right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        whole = by.device.type == "cpu" and float(by) == 1.0
        found = [g if g is None or whole else g * by.to(g.dtype) for g in ctx.saved_tensors]
        return (*found, None, None, None)


def _fused(
    ctx: Any, x: Tensor, weight: Tensor, labels: Tensor, how: _How
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with products in bfloat16, of logits that become their slopes where they lie."""
    matrix = weight.to(torch.bfloat16)
    wanted = [how.learn and needed for needed in ctx.needs_input_grad[:2]]
    grads = [
        torch.zeros_like(part) if want else None
        for part, want in zip((x, weight), wanted, strict=True)
    ]
    sums = torch.zeros(3, dtype=torch.float64)
    for span in _spans(x.shape[0], max(how.rows, HALF // weight.shape[0])):
        some = x[span].to(torch.bfloat16)
        slope = some @ matrix.T
        sums += trained.entropy(slope, labels[span], how.smoothing, how.z).sum(0)
        if grads[0] is not None:
            grads[0][span] = slope @ matrix
        if grads[1] is not None:
            grads[1] += slope.T @ some
    ctx.save_for_backward(*grads, None)
    total, squared, right = (one.clone() for one in sums.float())
    ctx.mark_non_differentiable(squared, right)
    return total, squared, right


def _spans(tokens: int, rows: int) -> list[slice]:
    """Chunks of about one size, none above `rows`."""
    each = -(-tokens // -(-tokens // rows)) if tokens else 1
    return [slice(start, start + each) for start in range(0, tokens, each)]


def _added(
    grads: list[Tensor | None], span: slice, slope: Tensor, x: Tensor, weight: Tensor
) -> None:
    """Add a chunk's part to the gradients of x, weight and bias."""
    if grads[0] is not None:
        grads[0][span] = (slope @ weight).to(grads[0].dtype)
    if grads[1] is not None:
        grads[1].addmm_(slope.T, x)
    if grads[2] is not None:
        grads[2] += slope.sum(0)


class _Chunk:
    """The losses of some tokens, and what they ask of their products."""

    def __init__(self, product: Tensor, shift: Tensor | None, labels: Tensor, how: _How) -> None:
        self.how, self.keep, spread = how, labels != IGNORE, how.spread
        size = product.shape[-1]
        self.classes, first = (size, 0) if spread is None else (spread.total, spread.first)
        if how.scale != 1.0:
            product *= how.scale
        self.squashed: Tensor | None = None
        logits = product
        if how.softcap is not None:
            self.squashed = product.div_(how.softcap).tanh_()
            logits = self.squashed * how.softcap
        if shift is not None:
            logits = logits + shift
        mine = self.keep & (labels >= first) & (labels < first + size)
        self.at, self.mine = torch.where(mine, labels - first, 0)[:, None], mine[:, None]
        top, place = logits.max(-1)
        if spread is None:
            self.log_p = logits.log_softmax(-1)
            self.log_z = (logits.gather(1, self.at) - self.log_p.gather(1, self.at))[:, 0]
        else:
            best = spread.max(top)
            place = -spread.max(torch.where(top == best, -place - first, -self.classes))
            self.log_z = best + spread.sum((logits - best[:, None]).exp().sum(-1)).log()
            self.log_p = logits - self.log_z[:, None]
        self.right = ((place == labels) & self.keep).sum()
        self.sums = self._sums(labels)

    def _sums(self, labels: Tensor) -> Tensor:
        """(2,) loss and z's part of it."""
        how = self.how
        if how.spread is None:  # as torch adds them up, to the last bit
            own = F.nll_loss(self.log_p, labels, reduction="sum", ignore_index=IGNORE)
        else:
            of_label = torch.where(self.mine, self.log_p.gather(1, self.at), 0.0).sum()
            own = -how.spread.sum(of_label)
        if how.smoothing:
            spare = self.log_p.sum(-1).masked_fill(~self.keep, 0.0).sum()
            spare = spare if how.spread is None else how.spread.sum(spare)
            own = (1 - how.smoothing) * own - how.smoothing / self.classes * spare
        squared = how.z * self.log_z.square().masked_fill(~self.keep, 0.0).sum()
        return torch.stack([own + squared, squared])

    def slope(self) -> Tensor:
        """The gradient (tokens, vocab) of the product; takes the place of the log-probabilities."""
        how, slope = self.how, self.log_p.exp_()
        if how.z:
            slope *= (1 + 2 * how.z * self.log_z)[:, None]
        if how.smoothing:
            slope -= how.smoothing / self.classes
        slope.scatter_add_(1, self.at, torch.where(self.mine, how.smoothing - 1, 0.0).to(slope))
        if self.squashed is not None:
            slope *= self.squashed.square_().neg_().add_(1)
        if how.scale != 1.0:
            slope *= how.scale
        return slope.masked_fill_(~self.keep[:, None], 0.0)
