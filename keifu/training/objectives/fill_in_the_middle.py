"""Fill in the middle: causal LM on documents whose middle is at their end.

Source: Bavarian et al. 2022, arXiv 2207.14255, sections 3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from keifu.data.middles import SPELT, Middles
from keifu.data.vocabulary import Vocabulary
from keifu.nn.losses import IGNORE
from keifu.training.batch import Sequences
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.reading import Drawn, pieces


@dataclass(frozen=True, kw_only=True)
class FillInTheMiddle(CausalLM):
    """Every token is learnt, as in any text; a row grows by three signs where it was cut."""

    rate: float = 0.5
    """Share of documents that are cut"""
    spm: float = 0.5
    """Of those, the share with the suffix first"""

    def middles(self, vocabulary: Vocabulary) -> Middles:
        """With the tokenizer's own signs."""
        signs = {name: vocabulary.first(*spelt) for name, spelt in SPELT.items()}
        return Middles(**signs, rate=self.rate, spm=self.spm)

    def row(self, drawn: Drawn, vocabulary: Vocabulary) -> tuple[Sequences, bool]:
        """Each document by itself; its eos stays at the end."""
        cut, rows = self.middles(vocabulary), []
        for ids in pieces(drawn.example):
            bare = vocabulary.bare(ids)
            made = [*cut(bare, drawn.random), *ids[len(bare) :]]
            rows.append(made[: vocabulary.context])
        if not rows:
            return Sequences.of([[0]], [[IGNORE]]), False
        return Sequences.of(rows, rows), any(len(row) > 1 for row in rows)


objective = FillInTheMiddle
