"""Gap sentences: whole sentences of a document are masked, and are to be written as its summary.

Source: Zhang et al. 2020, arXiv 1912.08777, section 3.1: those that say most of the rest, each
scored by itself (ROUGE-1 F1 against the other sentences, "Ind-Orig"); here over token ids.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from keifu.core.errors import KeifuError
from keifu.data.sentence_pairs import sentences
from keifu.data.vocabulary import Vocabulary
from keifu.training.objectives.seq2seq import Seq2Seq
from keifu.training.reading import Drawn


@dataclass(frozen=True, kw_only=True)
class GapSentences(Seq2Seq):
    """Seq2seq from a document with gaps to what stood there."""

    ratio: float = 0.3
    """Share of the sentences that are taken out; one at least"""

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise KeifuError(f"ratio={self.ratio} is not allowed: above 0 and below 1")

    def made(self, drawn: Drawn, vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
        """The document with a mask for each sentence that is gone, and those one after another."""
        ids = vocabulary.bare(drawn.example.ids.tolist())
        if len(ids) < 2:
            return [], []
        parts, mask = sentences(ids, vocabulary.ends), vocabulary.id("mask")
        gone = set(principal(parts, max(1, round(self.ratio * len(parts)))))
        read = [t for n, part in enumerate(parts) for t in ([mask] if n in gone else part)]
        return vocabulary.marked(read), [t for n in sorted(gone) for t in parts[n]]


def principal(parts: list[list[int]], count: int) -> list[int]:
    """The numbers of the sentences that say most of the others: ROUGE-1 F1; the earlier of two."""
    bags = [Counter(part) for part in parts]
    whole = sum(bags, Counter[int]())
    scores = []
    for bag in bags:
        rest = whole - bag
        shared = (bag & rest).total()
        scores.append(2 * shared / (bag.total() + rest.total()))
    return sorted(range(len(parts)), key=lambda n: -scores[n])[:count]


objective = GapSentences
