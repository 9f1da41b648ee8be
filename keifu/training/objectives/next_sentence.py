"""Masked words and next sentences: does the second text follow the first?

Source: Devlin et al. 2019, section 3.1 and appendix A.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from keifu.data.sentence_pairs import Document, Pair, next_sentence
from keifu.training.objectives._pairs_of_texts import PairsOfTexts
from keifu.training.reading import Drawn


@dataclass(frozen=True, kw_only=True)
class NextSentence(PairsOfTexts):
    """Half of the second texts are from another document."""

    def pair(
        self, document: Document, other: Callable[[], Document], most: int, drawn: Drawn
    ) -> Pair:
        """0: it follows."""
        return next_sentence(document, other, most=most, random=drawn.random)


objective = NextSentence
