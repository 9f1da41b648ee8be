"""Kneser-Ney against a slow one of dictionaries, and against what any model must be."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from keifu.core.errors import KeifuError
from keifu.evaluation.ngram import KneserNey

VOCAB = 97
TEXT = [int(n) for n in np.random.default_rng(0).zipf(1.5, 500) % VOCAB]


def slow(tokens: list[int], vocab: int, order: int, history: tuple[int, ...], word: int) -> float:
    """Chen & Goodman's equations, word by word."""
    grams = {order: Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))}
    for n in range(order - 1, 0, -1):
        grams[n] = Counter(gram[1:] for gram in grams[n + 1])

    def p(h: tuple[int, ...]) -> float:
        counts = grams[len(h) + 1]
        of = Counter(counts.values())
        y = of[1] / (of[1] + 2 * of[2])
        d = [0.0] + [max(0.0, n - (n + 1) * y * of[n + 1] / of[n]) for n in (1, 2, 3)]
        below = 1 / vocab if not h else p(h[1:])
        mine = {g: c for g, c in counts.items() if g[:-1] == h}
        if not mine:
            return below
        total = sum(mine.values())
        freed = sum(d[min(c, 3)] for c in mine.values())
        c = mine.get((*h, word), 0)
        return max(c - d[min(c, 3)], 0) / total + freed / total * below

    return p(history[-(order - 1) :] if order > 1 else ())


@pytest.mark.parametrize("order", [1, 2, 3])
def test_it_is_the_equations(order: int) -> None:
    model = KneserNey(np.array(TEXT), VOCAB, order)
    probe = [3, 1, 2, 1, 1, 5, 96, 0, 1, 4]
    found = model.probabilities(np.array(probe))
    for i in range(len(probe)):
        history = tuple(probe[max(0, i - order + 1) : i])
        assert found[i] == pytest.approx(slow(TEXT, VOCAB, order, history, probe[i]), abs=1e-12)
    assert model.loss(np.array(probe)) == pytest.approx(-np.log(found[1:]).mean())


def test_it_is_a_distribution_after_any_history() -> None:
    model = KneserNey(np.array(TEXT), VOCAB, 3)
    for history in itertools.product((1, 2, 3, 50, 96), repeat=2):
        rows = [model.probabilities(np.array([*history, word]))[-1] for word in range(VOCAB)]
        assert math.fsum(rows) == pytest.approx(1, abs=1e-9)
        assert min(rows) > 0


def test_longer_grams_foresee_what_repeats() -> None:
    tokens = np.tile(np.arange(6), 50)
    assert KneserNey(tokens, 6, 2).loss(tokens) < 0.2 < KneserNey(tokens, 6, 1).loss(tokens)
    with pytest.raises(KeifuError, match="do not fit"):
        KneserNey(tokens, 50000, 5)
    with pytest.raises(KeifuError, match="make no grams"):
        KneserNey(tokens, 5, 2)
