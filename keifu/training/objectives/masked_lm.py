"""Masked language modelling: the hidden tokens from both sides.

Source: Devlin et al. 2019, section 3.1, task 1; whole words: its code; spans: Joshi et al. 2020,
section 3.1; entities: Sun et al. 2019, section 3.3; n-grams: Lan et al. 2020, section 4.1.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from keifu.core.errors import KeifuError, unknown
from keifu.data.masking import UNITS, Masked, Masking, units_of
from keifu.data.vocabulary import Vocabulary
from keifu.nn.losses import IGNORE
from keifu.training.batch import Sequences
from keifu.training.objective import Loss, Objective, head_loss, noting, stack_of, states
from keifu.training.reading import Drawn, Reader, merged, pieces


@dataclass(frozen=True, kw_only=True)
class MaskedLM(Objective[Sequences]):
    """Cross-entropy at the labelled tokens, which are its items."""

    unit: Literal["token", "word", "span", "entity", "ngram"] = "token"
    """What is hidden together: a token, a word, a span of words (SpanBERT), an annotated entity or
    phrase (ERNIE), an n-gram of words (ALBERT)"""
    ratio: float = 0.15
    """Share of the tokens that are hidden"""
    masked: float = 0.8
    """Of those, the share that becomes the mask"""
    replaced: float = 0.1
    """Of those, the share that becomes another token; the rest stays"""
    ways: int | None = None
    """In how many ways a text is ever masked: 1 is static (none: dynamic, anew each time)"""

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise unknown("unit of masking", self.unit, UNITS)
        if self.ways is not None and self.ways < 1:
            raise KeifuError(f"ways={self.ways}: 1 or more, or none")

    def __call__(self, model: nn.Module, batch: Sequences) -> Loss:
        """The loss of a batch."""
        labels = batch.labels
        if labels is None or labels.shape != batch.ids.shape:
            raise KeifuError("masked-lm needs a label a token: IGNORE (-100) where none is hidden")
        at = (labels != IGNORE).nonzero()[:, 0]
        stack = stack_of(model, "masked-lm")
        own = head_loss(stack, states(stack, batch.ids, batch.step())[at], labels[at])
        return noting(own, batch.dropped, len(batch.lengths))

    def reader(self, vocabulary: Vocabulary) -> Reader[Sequences]:
        """Every document of an example is a row, between the marks that its checkpoint expects."""
        masking = self.masking(vocabulary)
        return lambda examples: merged(self._rows(one, vocabulary, masking) for one in examples)

    def masking(self, vocabulary: Vocabulary) -> Masking:
        """How much is hidden, and how."""
        return Masking(
            mask=vocabulary.id("mask"),
            vocab=vocabulary.size,
            special=vocabulary.special,
            ratio=self.ratio,
            masked=self.masked,
            replaced=self.replaced,
            whole=self.unit in ("entity", "span"),
        )

    def hidden(
        self,
        ids: list[int],
        drawn: Drawn,
        vocabulary: Vocabulary,
        masking: Masking,
        annotated: tuple[tuple[int, int], ...] = (),
    ) -> Masked:
        """A row after masking. One of `ways` follows from the text and the way's number alone."""
        random = drawn.random
        if self.ways is not None:
            way = int(random.integers(self.ways))
            text = zlib.crc32(np.asarray(ids, np.int64).tobytes())
            random = np.random.default_rng(np.random.SeedSequence((text, way)))
        units = units_of(self.unit, ids, vocabulary.special, vocabulary.inside, random, annotated)
        return masking(ids, units, random)

    def _rows(
        self, drawn: Drawn, vocabulary: Vocabulary, masking: Masking
    ) -> tuple[Sequences, bool]:
        shown, labels, at = [], [], 0
        for piece in pieces(drawn.example):
            row, lead = vocabulary.marked(piece), len(vocabulary.prefix)
            end = len(row) - len(vocabulary.suffix)
            inside = [(a - at + lead, b - at + lead) for a, b in drawn.example.spans]
            marked = tuple((a, b) for a, b in inside if lead <= a < b <= end)
            one = self.hidden(row, drawn, vocabulary, masking, marked)
            shown.append(one.ids)
            labels.append(one.labels)
            at += len(piece)
        if not shown:
            return Sequences.of([[vocabulary.id("mask")]], [[IGNORE]]), False
        return Sequences.of(shown, labels), any(n != IGNORE for row in labels for n in row)


objective = MaskedLM
