"""Near-duplicates by MinHash and locality-sensitive hashing of word shingles.

Broder 1997: of two sets, the share of equal minima under random orders is their Jaccard similarity
|A and B| / |A or B|. Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4: with b
bands of r minima, a pair of similarity s shares a band with probability 1 - (1 - s^r)^b. Orders
are multiply-shift hashes (Dietzfelbinger et al. 1997). Bloom filters instead of tables, one a
band: LSHBloom, arXiv 2411.04257.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keifu.core.errors import KeifuError
from keifu.data.bloom import Bloom
from keifu.data.document import Document, Dropped
from keifu.data.shingles import U64, mixed, shingles, words
from keifu.data.step import CorpusStep, Judge, Look, Verdict

_PART = 1024
"""Shingles that are hashed together, to stay in the cache."""


def signature(numbers: U64, permutations: int, seed: int = 1) -> NDArray[np.uint32]:
    """(permutations,) the smallest hash of a set of numbers under each of so many orders."""
    factors, offsets = _orders(permutations, seed)
    least = np.full(permutations, 0xFFFFFFFF, np.uint32)
    numbers = np.unique(numbers)
    for first in range(0, len(numbers), _PART):
        part = numbers[first : first + _PART, None] * factors + offsets
        np.minimum(least, (part >> np.uint64(32)).astype(np.uint32).min(0), out=least)
    return least


@functools.lru_cache(4)
def _orders(permutations: int, seed: int) -> tuple[U64, U64]:
    drawn = np.random.PCG64(seed).random_raw(2 * permutations)
    return drawn[:permutations] | np.uint64(1), drawn[permutations:]


def bands_for(threshold: float, permutations: int) -> tuple[int, int]:
    """(bands, rows) that make the fewest errors around a threshold, both sorts weighed alike."""
    similar = (np.arange(1000) + 0.5) / 1000
    best, found = float("inf"), (1, 1)
    for bands in range(1, permutations + 1):
        for rows in range(1, permutations // bands + 1):
            caught = 1 - (1 - similar**rows) ** bands
            wrong = np.where(similar < threshold, caught, 1 - caught).sum()
            if wrong < best:
                best, found = float(wrong), (bands, rows)
    return found


@dataclass(frozen=True, kw_only=True)
class MinHash(CorpusStep):
    """The first of documents that are alike stays."""

    threshold: float = 0.8
    """Jaccard similarity of word shingles from which documents are near-duplicates"""
    permutations: int = 128
    """Minima of a signature: the estimate's deviation is about sqrt(s (1 - s) / permutations)"""
    words: int = 5
    """Words of a shingle"""
    bloom: int = 0
    """Documents that Bloom filters are made for: fixed memory, no second look at the signatures
    (0: tables of some kilobytes a document)"""
    seed: int = 1
    """Which orders are drawn"""

    def __post_init__(self) -> None:
        if not (0 < self.threshold < 1 and 1 <= self.permutations <= 4096 and self.words >= 1):
            raise KeifuError(
                "minhash: threshold is between 0 and 1, permutations 1 to 4096, words at least 1"
            )

    def look(self) -> Look:
        """Keys of the bands, then the signature; nothing for a text without words."""
        bands, rows = bands_for(self.threshold, self.permutations)
        place = mixed(np.arange(1, rows + 1, dtype=np.uint64)) | np.uint64(1)

        def look(document: Document) -> bytes:
            numbers = shingles(words(document.text).hashes, self.words)
            if not len(numbers):
                return b""
            least = signature(numbers, self.permutations, self.seed)
            parts = least[: bands * rows].reshape(bands, rows).astype(np.uint64)
            keys = mixed((mixed(parts) * place).sum(1, dtype=np.uint64))
            return keys.astype("<u8").tobytes() + least.astype("<u4").tobytes()

        return look

    def judge(self) -> Judge:
        """Whether one that is alike came before."""
        bands, _ = bands_for(self.threshold, self.permutations)
        return self._filtered(bands) if self.bloom else self._compared(bands)

    def _compared(self, bands: int) -> Judge:
        tables: list[dict[int, list[int]]] = [{} for _ in range(bands)]
        kept: list[tuple[int, bytes]] = []

        def judge(number: int, looked: bytes) -> Verdict:
            if not looked:
                return None
            keys = np.frombuffer(looked, "<u8", bands).tolist()
            mine = np.frombuffer(looked, "<u4", offset=8 * bands)
            others = {o for t, k in zip(tables, keys, strict=True) for o in t.get(k, ())}
            for other in sorted(others):
                first, theirs = kept[other]
                alike = float((mine == np.frombuffer(theirs, "<u4")).mean())
                if alike >= self.threshold:
                    return Dropped("near duplicate", f"of document {first}, about {alike:.2f}")
            for table, key in zip(tables, keys, strict=True):
                table.setdefault(key, []).append(len(kept))
            kept.append((number, mine.tobytes()))
            return None

        return judge

    def _filtered(self, bands: int) -> Callable[[int, bytes], Verdict]:
        filters = [Bloom(self.bloom) for _ in range(bands)]

        def judge(number: int, looked: bytes) -> Verdict:
            keys = np.frombuffer(looked, "<u8", bands).tolist() if looked else []
            if any(key in filter for filter, key in zip(filters, keys, strict=False)):
                return Dropped("near duplicate")
            for filter, key in zip(filters, keys, strict=False):
                filter.add(key)
            return None

        return judge


STEP = MinHash
