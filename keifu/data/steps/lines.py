"""Lines that many documents share: a site's head and foot, notices, licences.

As CCNet (Wenzek et al. 2020, arXiv 1911.00359, section 3.1), which removes paragraphs seen before,
but only from the `after`-th document on, so that a sentence may be quoted.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from keifu.core.errors import KeifuError
from keifu.data.document import Document, Dropped
from keifu.data.shingles import words
from keifu.data.step import CorpusStep, Judge, Look, Verdict

_END = re.compile("\n")


@dataclass(frozen=True, kw_only=True)
class Lines(CorpusStep):
    """Leaves out lines that so many earlier documents have."""

    edits: ClassVar[bool] = True
    after: int = 5
    """Documents that may have a line; it is left out of later ones"""
    shortest: int = 4
    """Lines of fewer words stay"""
    capacity: int = 20_000_000
    """Different lines that are remembered; later new ones are not, so memory stays bounded"""

    def __post_init__(self) -> None:
        if self.after < 1 or self.shortest < 1:
            raise KeifuError("lines: after and shortest are at least 1")

    def look(self) -> Look:
        """Eight bytes a line; zeros for one that stays anyway."""

        def look(document: Document) -> bytes:
            text = document.text
            ends = np.array([at.start() for at in _END.finditer(text)], np.int64)
            found = words(text)
            # first[k] is line k's first word; the last entry is the number of words
            first = np.searchsorted(found.starts, np.concatenate(([0], ends, [len(text)])))
            counts = np.diff(first)
            place = np.arange(len(found.starts)) - np.repeat(first[:-1], counts)
            sums = np.zeros(len(place) + 1, np.uint64)
            np.cumsum(found.hashes * (2 * place + 1).astype(np.uint64), out=sums[1:])
            numbers = sums[first[1:]] - sums[first[:-1]]
            numbers[counts < self.shortest] = 0
            return numbers.tobytes()

        return look

    def judge(self) -> Judge:
        """Which lines (by number) are to go."""
        seen: Counter[int] = Counter()

        def judge(number: int, looked: bytes) -> Verdict:
            numbers = np.frombuffer(looked, np.uint64).tolist()
            gone = tuple(at for at, line in enumerate(numbers) if line and seen[line] >= self.after)
            for line in set(numbers):
                if line and (line in seen or len(seen) < self.capacity):
                    seen[line] += 1
            return gone or None

        return judge

    def edit(self, document: Document, parts: tuple[int, ...]) -> Document | Dropped:
        """Without those lines."""
        gone = set(parts)
        kept = [line for at, line in enumerate(document.text.split("\n")) if at not in gone]
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n")
        return replace(document, text=text) if text.strip() else Dropped("only shared lines")


STEP = Lines
