"""The baseline that a small model has to beat: interpolated modified Kneser-Ney over tokens.

Source: Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling",
section 3 (equations 25 to 27). For a history h that ends a token sequence and a token w,

    p(w | h) = max(c(h w) - D(c(h w)), 0) / c(h .) + gamma(h) p(w | h without its first token)

with one discount D for counts of 1, of 2 and of 3 and more, gamma(h) the mass that they free, and
below the highest order not counts but the number of different tokens seen before h w. The lowest
is interpolated with 1 / vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keifu.core.errors import KeifuError

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class _Order:
    """One order's counts: sorted keys of grams and of their histories."""

    grams: Ids
    counts: Ids
    histories: Ids
    totals: Ids
    freed: NDArray[np.float64]
    """The mass that discounts free, by history."""
    discounts: NDArray[np.float64]
    """Of counts 0, 1, 2, and 3 and more."""


class KneserNey:
    """An n-gram model of token ids.

    Args:
        tokens: (tokens,) what it is counted on; texts one after another.
        vocab: how many ids there are.
        order: tokens of the longest gram.
    """

    def __init__(self, tokens: Ids, vocab: int, order: int = 4) -> None:
        self.bits, self.vocab = max(1, (vocab - 1).bit_length()), vocab
        if order < 1 or self.bits * order > 62:
            raise KeifuError(f"grams of {order} tokens of {vocab} do not fit 62 bits: fewer tokens")
        if len(tokens) < order or tokens.min() < 0 or tokens.max() >= vocab:
            raise KeifuError(f"{len(tokens)} tokens below {vocab} make no grams of {order}")
        grams, counts = np.unique(self._keys(tokens, order), return_counts=True)
        self.orders = [self._order(grams, counts)]
        for size in range(order - 1, 0, -1):  # a gram counts as often as tokens differ before it
            grams, counts = np.unique(grams & self._mask(size), return_counts=True)
            self.orders.insert(0, self._order(grams, counts))

    def probabilities(self, tokens: Ids) -> NDArray[np.float64]:
        """(tokens,) of each token after those before it; the first ones have shorter histories."""
        found = np.full(len(tokens), 1.0 / self.vocab)
        for size, order in enumerate(self.orders, 1):
            if len(tokens) < size:
                break
            keys, below = self._keys(tokens, size), found[size - 1 :]
            at, known = _places(order.histories, keys >> self.bits)
            place, seen = _places(order.grams, keys)
            counts = np.where(seen, order.counts[place], 0)
            kept = np.maximum(counts - order.discounts[np.minimum(counts, 3)], 0.0)
            mixed = (kept + order.freed[at] * below) / order.totals[at]
            found[size - 1 :] = np.where(known, mixed, below)
        return found

    def loss(self, tokens: Ids) -> float:
        """Mean nats a token, the first one left out; its exponential is the perplexity."""
        if len(tokens) < 2:
            raise KeifuError(f"{len(tokens)} tokens are too few to be scored")
        return float(-np.log(self.probabilities(tokens)[1:]).mean())

    def _keys(self, tokens: Ids, size: int) -> Ids:
        """(tokens - size + 1,) each gram as one number, its first token in the highest bits."""
        keys = np.zeros(len(tokens) - size + 1, np.int64)
        for i in range(size):
            keys = (keys << self.bits) | tokens[i : i + len(keys)]
        return keys

    def _mask(self, size: int) -> int:
        return (1 << (self.bits * size)) - 1

    def _order(self, grams: Ids, counts: Ids) -> _Order:
        ones, twos, threes, fours = (int((counts == n).sum()) for n in (1, 2, 3, 4))
        y = ones / (ones + 2 * twos) if ones else 0.5
        ratios = [
            n - (n + 1) * y * after / now if now and after else 0.5
            for n, now, after in ((1, ones, twos), (2, twos, threes), (3, threes, fours))
        ]
        discounts = np.clip(np.array([0.0, *ratios]), 0.0, [0.0, 1.0, 2.0, 3.0])
        histories, start = np.unique(grams >> self.bits, return_index=True)
        totals = np.add.reduceat(counts, start)
        freed = np.add.reduceat(discounts[np.minimum(counts, 3)], start)
        return _Order(grams, counts, histories, totals, freed, discounts)


def _places(sorted_keys: Ids, keys: Ids) -> tuple[Ids, NDArray[np.bool_]]:
    """Where keys stand among sorted ones, and which of them are there."""
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return at, sorted_keys[at] == keys
