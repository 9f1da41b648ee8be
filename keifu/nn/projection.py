"""Projections: the product that ends a head, told before it is made, so that a loss can chunk it.

A loss over a vocabulary needs of the logits (tokens, vocab) only a few sums a token. A head that
is a product at its end says of what (`Projecting.projection`), and `losses.linear_cross_entropy`
makes the logits a few tokens at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from keifu.nn.linear import Embedding, Linear


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A vocabulary of which every process has a run; sums and maxima are over the processes."""

    first: int
    """The id of this process's first row."""
    total: int
    """Rows of all."""
    sum: Callable[[Tensor], Tensor]
    max: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """logits = softcap * tanh(scale * (x W^T + bias) / softcap) + shift, not made yet."""

    x: Tensor
    """(tokens, inner)."""
    weight: Tensor
    """(vocab, inner), or this process's rows of it."""
    bias: Tensor | None = None
    """(vocab,)"""
    scale: float = 1.0
    softcap: float | None = None
    shift: Tensor | None = None
    """(1, vocab), a constant."""
    spread: Spread | None = None


class Projecting(nn.Module):
    """Base of the heads that end in one product with a dense matrix."""

    spread: Spread | None = None
    """Set where the vocabulary is shared out over processes."""

    def projection(self, x: Tensor, table: Embedding) -> Projection | None:
        """The product for x (tokens, width), or None where it has to be made as it is.

        That is the case for packed matrices and for adapters on this very product.
        """
        raise NotImplementedError


def matrix(own: Linear | None, table: Embedding) -> Tensor | None:
    """The head's dense matrix: its own or the table's; None where there is more to the product."""
    if own is None:
        return table.weight
    return own.weight if not own.deltas and not own._forward_hooks else None
