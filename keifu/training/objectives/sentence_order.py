"""Masked words and the order of sentences: are the two texts in the order they were written in?

Source: Lan et al. 2020, arXiv 1909.11942, section 3.1, which masks n-grams beside it (4.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from keifu.data.sentence_pairs import Document, Pair, sentence_order
from keifu.training.objectives._pairs_of_texts import PairsOfTexts
from keifu.training.reading import Drawn


@dataclass(frozen=True, kw_only=True)
class SentenceOrder(PairsOfTexts):
    """Half of the pairs are swapped."""

    unit: Literal["token", "word", "span", "entity", "ngram"] = "ngram"
    """What is hidden together"""

    def pair(
        self, document: Document, other: Callable[[], Document], most: int, drawn: Drawn
    ) -> Pair:
        """0: as written; 1: swapped."""
        return sentence_order(document, most=most, random=drawn.random)


objective = SentenceOrder
