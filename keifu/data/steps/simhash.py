"""Near-duplicates by SimHash: 64 bits, few of which differ between texts that are alike.

Charikar 2002; Manku, Jain, Das Sarma 2007: each bit is the sign of a sum over the text's shingles.
Of two numbers with at most d different bits, one of d + 1 equal parts is the same.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from keifu.core.errors import KeifuError
from keifu.data.document import Document, Dropped
from keifu.data.shingles import shingles, words
from keifu.data.step import CorpusStep, Judge, Look, Verdict


def simhash(text: str, n: int = 3) -> int:
    """64 bits of a text's word n-grams, each counted as often as it comes."""
    numbers = shingles(words(text).hashes, n)
    bits = np.unpackbits(numbers.astype("<u8").view(np.uint8), bitorder="little").reshape(-1, 64)
    votes = 2 * bits.sum(0, dtype=np.int64) > len(bits)
    return int.from_bytes(np.packbits(votes, bitorder="little").tobytes(), "little")


@dataclass(frozen=True, kw_only=True)
class SimHash(CorpusStep):
    """The first of documents that are alike stays."""

    distance: int = 3
    """Bits of 64 that may differ (Manku et al.: 3 for eight billion pages)"""
    words: int = 3
    """Words of a shingle"""

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= 15 or self.words < 1:
            raise KeifuError("simhash: distance is 0 to 15, words at least 1")

    def look(self) -> Look:
        """Eight bytes; none for a text without words."""

        def look(document: Document) -> bytes:
            if not len(words(document.text).hashes):
                return b""
            return simhash(document.text, self.words).to_bytes(8, "little")

        return look

    def judge(self) -> Judge:
        """Whether one that is alike came before."""
        cuts = [64 * part // (self.distance + 1) for part in range(self.distance + 2)]
        tables: list[dict[int, list[tuple[int, int]]]] = [
            defaultdict(list) for _ in range(self.distance + 1)
        ]

        def judge(number: int, looked: bytes) -> Verdict:
            if not looked:
                return None
            bits = int.from_bytes(looked, "little")
            parts = [
                (bits >> low) & ((1 << (high - low)) - 1) for low, high in itertools.pairwise(cuts)
            ]
            for table, part in zip(tables, parts, strict=True):
                for other, first in table.get(part, ()):
                    apart = (bits ^ other).bit_count()
                    if apart <= self.distance:
                        return Dropped("near duplicate", f"of document {first}, {apart} bits apart")
            for table, part in zip(tables, parts, strict=True):
                table[part].append((bits, number))
            return None

        return judge


STEP = SimHash
