"""A language model's opinion: how surprised it is, in perplexity.

CCNet (Wenzek et al. 2020, arXiv 1911.00359, section 3.3) keeps what a model of good text finds
likely; Ziya2 (arXiv 2311.03301, section 2.1) scores with two such models. Very low perplexity is
text that repeats itself. The model is handed in (`Pipeline(judge=...)`, `--judge MODEL`): this
floor knows none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from keifu.core.errors import KeifuError
from keifu.data.document import Change, Document, Dropped
from keifu.data.step import DocumentStep

Score = Callable[[str], float]
"""A text -> its perplexity a token under a model."""


@dataclass(frozen=True, kw_only=True)
class Perplexity(DocumentStep):
    """Writes `perplexity` into a document's meta and leaves out what lies outside the bounds."""

    least: float = 0.0
    """Documents below are left out"""
    most: float = math.inf
    """Documents above are left out"""
    read: int = 4000
    """Characters that the model reads"""
    judge: Callable[[], Score] | None = field(default=None, metadata={"given": True})
    """Opens the model, once in each process"""

    def start(self) -> Change:
        """The function that does it, with the model."""
        if self.judge is None:
            raise KeifuError("the step perplexity needs a model to judge by: --judge MODEL")
        score = self.judge()

        def change(document: Document) -> Document | Dropped:
            found = float(score(document.text[: self.read]))
            if not self.least <= found <= self.most:  # not a number is outside, too
                return Dropped("too likely" if found < self.least else "too unlikely",
                               f"perplexity {found:.1f}")  # fmt: skip
            return replace(document, meta={**document.meta, "perplexity": round(found, 2)})

        return change


STEP = Perplexity
