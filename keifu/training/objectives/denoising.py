"""Denoising: a damaged document is read, the whole one is to be written.

Source: Lewis et al. 2020, arXiv 1910.13461, section 2.2; its large model took text infilling of
30 % and permuted sentences (section 5).
"""

from __future__ import annotations

from dataclasses import dataclass

from keifu.core.errors import unknown
from keifu.data.noising import (
    DocumentRotation,
    Noise,
    Noised,
    SentencePermutation,
    TextInfilling,
    TokenDeletion,
    TokenMasking,
    noised,
)
from keifu.data.vocabulary import Vocabulary
from keifu.training.objectives.seq2seq import Seq2Seq
from keifu.training.reading import Drawn

NOISES = ("masking", "deletion", "infilling", "permutation", "rotation")


@dataclass(frozen=True, kw_only=True)
class Denoising(Seq2Seq):
    """Seq2seq from a text after each noise in turn."""

    noises: tuple[str, ...] = ("permutation", "infilling")
    """masking, deletion, infilling, permutation, rotation; each after the one before it"""
    ratio: float = 0.3
    """Share of the tokens that are masked, deleted or infilled"""
    rate: float = 3.0
    """Mean length of infilled spans"""

    def __post_init__(self) -> None:
        for name in self.noises:
            if name not in NOISES:
                raise unknown("noise", name, NOISES)

    def steps(self, ids: list[int], vocabulary: Vocabulary) -> list[Noise]:
        """The noises for a document."""
        mask = vocabulary.id("mask") if {"masking", "infilling"} & set(self.noises) else -1
        made: dict[str, Noise] = {
            "masking": TokenMasking(mask=mask, ratio=self.ratio),
            "deletion": TokenDeletion(ratio=self.ratio),
            "infilling": TextInfilling(mask=mask, ratio=self.ratio, rate=self.rate),
            "permutation": SentencePermutation(ends=frozenset(filter(vocabulary.ends, ids))),
            "rotation": DocumentRotation(),
        }
        return [made[name] for name in self.noises]

    def noised(self, ids: list[int], drawn: Drawn, vocabulary: Vocabulary) -> Noised:
        """A document after all of them."""
        return noised(ids, self.steps(ids, vocabulary), drawn.random)

    def made(self, drawn: Drawn, vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
        """The damaged document between its marks, the whole one after its prefix (BART's <s>)."""
        ids = vocabulary.bare(drawn.example.ids.tolist())
        if not ids:
            return [], []
        read = vocabulary.marked(self.noised(ids, drawn, vocabulary).tokens)
        return read, [*vocabulary.prefix, *ids]


objective = Denoising
