"""Span corruption: the input has sentinels where spans were, the target says what they were.

Source: Raffel et al. 2020, arXiv 1910.10683, section 3.1.4.
"""

from __future__ import annotations

from dataclasses import dataclass

from keifu.data.span_corruption import SpanCorruption
from keifu.data.vocabulary import Vocabulary
from keifu.training.objectives.seq2seq import Seq2Seq
from keifu.training.reading import Drawn


@dataclass(frozen=True, kw_only=True)
class Spans(Seq2Seq):
    """Seq2seq on a text and its own hidden spans."""

    density: float = 0.15
    """Share of the tokens that is hidden"""
    mean: float = 3.0
    """Tokens of a span, on average"""

    def __post_init__(self) -> None:
        self.noise(())

    def noise(self, sentinels: tuple[int, ...]) -> SpanCorruption:
        """How spans are drawn."""
        return SpanCorruption(sentinels=sentinels, density=self.density, mean=self.mean)

    def made(self, drawn: Drawn, vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
        """Input and target; a text of less than two tokens has neither."""
        ids = vocabulary.bare(drawn.example.ids.tolist())
        if len(ids) < 2:
            return [], []
        read, written = self.noise(vocabulary.sentinels)(ids, drawn.random)
        return vocabulary.marked(read), written


objective = Spans
