"""RefinedWeb's corrections line by line: counters, buttons, capitals, single words.

Penedo et al. 2023, arXiv 2306.01116, section G.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from keifu.data.document import Change, Document, Dropped
from keifu.data.step import DocumentStep

_COUNTER = re.compile(
    r"^\W*\d[\d.,]*\s*[km]?\s*(likes?|shares?|comments?|retweets?|reposts?|quotes?|bookmarks?|"
    r"upvotes?|downvotes?|downloads?|views?|followers?)\W*$",
    re.I,
)
_START = re.compile(r"^\W*(sign[- ]?in|log[- ]?in|sign[- ]?up)\b", re.I)
_END = re.compile(r"\b(read more|see more|continue reading)\W*$", re.I)
_INSIDE = re.compile(r"\b(items? in (cart|basket)|add to (cart|basket))\b", re.I)
_NUMBERS = re.compile(r"^[\W\d_]+$")


@dataclass(frozen=True, kw_only=True)
class RefinedWeb(DocumentStep):
    """Leaves out such lines, and documents that are too much of them; the paper's defaults."""

    most: float = 0.05
    """A document of whose words a larger share is in such lines is left out"""
    capitals: float = 0.5
    """Share of a line's letters from which it is mainly in capitals"""
    short: int = 10
    """Words of lines in which buttons are looked for, at most"""

    def start(self) -> Change:
        """The function that does it."""

        def change(document: Document) -> Document | Dropped:
            lines = document.text.split("\n")
            kept = [line for line in lines if not line.strip() or not self._odd(line.strip())]
            if len(kept) == len(lines):
                return document
            text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n")
            words, left = len(document.text.split()), len(text.split())
            if words - left > self.most * words:
                return Dropped("too many odd lines", f"{1 - left / words:.0%} of its words")
            return replace(document, text=text)

        return change

    def _odd(self, line: str) -> bool:
        words = line.split()
        if line.isascii() and len(words) == 1:
            return True
        if _NUMBERS.match(line) or _COUNTER.match(line):
            return True
        capitals = sum(map(str.isupper, line))
        if capitals > 1 and capitals > self.capitals * sum(map(str.isalpha, line)):
            return True
        buttons = (_START, _END, _INSIDE)
        return len(words) <= self.short and any(pattern.search(line) for pattern in buttons)


STEP = RefinedWeb
