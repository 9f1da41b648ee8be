"""Gopher's quality rules: length, shape of words, symbols, bullets, ellipses, common words.

Rae et al. 2021, arXiv 2112.11446, section A.1.1 ("Quality Filtering"); words are apart by spaces,
and in scripts without spaces (Chinese, Japanese, Thai) each sign is one.
"""

from __future__ import annotations

from dataclasses import dataclass

from keifu.data import shingles
from keifu.data.document import Change, Document, Dropped
from keifu.data.step import DocumentStep

_BULLETS = ("•", "-", "*", "‣", "●", "○", "–")
_ELLIPSES = ("...", "…")


@dataclass(frozen=True, kw_only=True)
class Gopher(DocumentStep):
    """Leaves out documents that do not look like prose; the defaults are the paper's."""

    fewest_words: int = 50
    """Words of the shortest document that stays"""
    most_words: int = 100_000
    """Words of the longest"""
    least_length: float = 3.0
    """Characters of a word, on average, at least"""
    most_length: float = 10.0
    """... and at most"""
    symbols: float = 0.1
    """Most hash signs, and most ellipses, for each word"""
    bullets: float = 0.9
    """Largest share of lines that begin with a bullet"""
    ellipses: float = 0.3
    """Largest share of lines that end with an ellipsis"""
    letters: float = 0.8
    """Least share of words with a letter in them"""
    common: int = 2
    """Least number of different common words (0 for languages other than English)"""
    common_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """The common words"""

    def start(self) -> Change:
        """The function that does it."""
        common = frozenset(self.common_words)

        def change(document: Document) -> Document | Dropped:
            text = document.text
            words = _split(text)
            count = len(words)
            if not self.fewest_words <= count <= self.most_words:
                return Dropped("too few words" if count < self.fewest_words else "too many words",
                               str(count))  # fmt: skip
            length = sum(map(len, words)) / count
            if not self.least_length <= length <= self.most_length:
                return Dropped("length of words", f"{length:.1f} characters on average")
            dots = sum(map(text.count, _ELLIPSES))
            if max(text.count("#"), dots) > self.symbols * count:
                return Dropped("too many symbols")
            if shape := self._lines([line.strip() for line in text.split("\n") if line.strip()]):
                return Dropped(shape)
            if sum(any(map(str.isalpha, word)) for word in words) < self.letters * count:
                return Dropped("words without letters")
            if self.common and len(common.intersection(map(str.lower, words))) < self.common:
                return Dropped("no common words")
            return document

        return change

    def _lines(self, lines: list[str]) -> str:
        if sum(line.startswith(_BULLETS) for line in lines) > self.bullets * len(lines):
            return "a list of bullets"
        if sum(line.endswith(_ELLIPSES) for line in lines) > self.ellipses * len(lines):
            return "lines end with ellipses"
        return ""


def _split(text: str) -> list[str]:
    found = text.split()
    if text.isascii():
        return found
    spans = shingles.words(text)
    if len(spans.starts) < 2 * len(found):
        return found
    return [text[a:b] for a, b in zip(spans.starts.tolist(), spans.ends.tolist(), strict=True)]


STEP = Gopher
