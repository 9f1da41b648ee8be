"""Gopher's repetition rules: lines, paragraphs and word n-grams that come again and again.

Rae et al. 2021, arXiv 2112.11446, section A.1.1 and table A1. Characters are those of words.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from keifu.data.document import Change, Document, Dropped
from keifu.data.shingles import Words, shingles, words
from keifu.data.step import DocumentStep


def top_share(found: Words, n: int) -> float:
    """The share of characters in the n-gram of words that comes most often."""
    if len(found.hashes) < n:
        return 0.0
    lengths = found.ends - found.starts
    _, first, counts = np.unique(shingles(found.hashes, n), return_index=True, return_counts=True)
    if counts.max() < 2:
        return 0.0
    sizes = np.convolve(lengths, np.ones(n, np.int64), "valid")[first]
    top = counts == counts.max()
    return float((counts * sizes)[top].max() / lengths.sum())


def duplicate_share(found: Words, n: int) -> float:
    """The share of characters inside n-grams of words that come more than once."""
    if len(found.hashes) < n:
        return 0.0
    lengths = found.ends - found.starts
    _, which, counts = np.unique(shingles(found.hashes, n), return_inverse=True, return_counts=True)
    again = counts[which] > 1
    inside = np.zeros(len(lengths) + 1, np.int64)
    np.add.at(inside, np.flatnonzero(again), 1)
    np.add.at(inside, np.flatnonzero(again) + n, -1)
    return float(lengths[np.cumsum(inside[:-1]) > 0].sum() / lengths.sum())


@dataclass(frozen=True, kw_only=True)
class GopherRepetition(DocumentStep):
    """Leaves out documents that repeat themselves; the defaults are table A1's."""

    lines: float = 0.30
    """Largest share of lines that came before in the document"""
    line_characters: float = 0.20
    """Largest share of characters in them"""
    paragraphs: float = 0.30
    """Largest share of paragraphs that came before"""
    paragraph_characters: float = 0.20
    """Largest share of characters in them"""
    top: tuple[float, ...] = (0.20, 0.18, 0.16)
    """Largest shares of characters in the most frequent 2-, 3- and 4-gram"""
    duplicates: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Largest shares of characters in 5- to 10-grams that come more than once"""

    def start(self) -> Change:
        """The function that does it."""

        def change(document: Document) -> Document | Dropped:
            text = document.text
            for name, parts, most, characters in (
                ("lines", text.split("\n"), self.lines, self.line_characters),
                ("paragraphs", text.split("\n\n"), self.paragraphs, self.paragraph_characters),
            ):
                share, size = _again([part.strip() for part in parts if part.strip()])
                if share > most or size > characters:
                    return Dropped(f"repeated {name}", f"{share:.0%}, of characters {size:.0%}")
            found = words(text)
            for n, most in enumerate(self.top, 2):
                if (share := top_share(found, n)) > most:
                    return Dropped("one n-gram too often", f"{n} words, {share:.0%} of characters")
            for n, most in enumerate(self.duplicates, 5):
                if (share := duplicate_share(found, n)) > most:
                    return Dropped("repeated n-grams", f"{n} words, {share:.0%} of characters")
            return document

        return change


def _again(parts: list[str]) -> tuple[float, float]:
    """The shares of parts, and of their characters, that came before."""
    counts = Counter(parts)
    size = sum(map(len, parts))
    again = sum((times - 1) * len(part) for part, times in counts.items())
    return (1 - len(counts) / len(parts), again / size) if parts else (0.0, 0.0)


STEP = GopherRepetition
