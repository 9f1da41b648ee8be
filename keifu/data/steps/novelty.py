"""Novelty by ROUGE-L: a text that is too much like any earlier one is left out.

Wang et al. 2022 (Self-Instruct), arXiv 2212.10560, section 2.2: an instruction joins the pool if
its ROUGE-L with every one of it is below 0.7. ROUGE-L (Lin 2004) is the F1 of the longest common
subsequence of words; words are those of `rouge_score`: runs of a-z and 0-9 in small letters. Every
pair is compared, so this is for instructions, not for a crawl.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from keifu.core.errors import KeifuError
from keifu.data.document import Dropped
from keifu.data.step import CorpusStep, Judge, Look, Verdict

_WORD = re.compile(r"[a-z0-9]+")


def rouge_l(left: list[str], right: list[str]) -> float:
    """The F1 of the longest common subsequence of two lists of words."""
    common = _common(_where(left), len(left), right)
    return 2 * common / (len(left) + len(right)) if common else 0.0


def _where(words: list[str]) -> dict[str, int]:
    """Each word's places, as bits."""
    places: dict[str, int] = defaultdict(int)
    for at, word in enumerate(words):
        places[word] |= 1 << at
    return places


def _common(places: dict[str, int], size: int, other: list[str]) -> int:
    """The length of the longest common subsequence, a row of the table at a time (Hyyro 2004)."""
    full = (1 << size) - 1
    row = full
    for word in other:
        met = row & places.get(word, 0)
        row = ((row + met) | (row - met)) & full
    return size - row.bit_count()


@dataclass(frozen=True, kw_only=True)
class Novelty(CorpusStep):
    """Keeps documents whose ROUGE-L with all before is below a bound."""

    below: float = 0.7
    """A document with at least this ROUGE-L to an earlier one is left out"""
    most: int = 100_000
    """Documents that are compared with; more would take too long"""

    def look(self) -> Look:
        """The words."""
        return lambda document: " ".join(_WORD.findall(document.text.lower())).encode()

    def judge(self) -> Judge:
        """Whether one that is alike came before."""
        pool: list[tuple[int, list[str]]] = []

        def judge(number: int, looked: bytes) -> Verdict:
            mine = looked.decode().split()
            places, size = _where(mine), len(mine)
            for first, other in pool:
                # no common subsequence is longer than the shorter text
                if 2 * min(size, len(other)) < self.below * (size + len(other)):
                    continue
                score = 2 * _common(places, size, other) / max(1, size + len(other))
                if score >= self.below:
                    return Dropped("not new", f"ROUGE-L {score:.2f} with document {first}")
            if len(pool) >= self.most:
                raise KeifuError(f"novelty: more than {self.most} documents to compare with")
            pool.append((number, mine))
            return None

        return judge


STEP = Novelty
