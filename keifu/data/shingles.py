"""Words and word n-grams of a text as 64-bit numbers: what near-duplicates and overlaps count.

A word's number is a polynomial over its characters modulo 2^64, taken for all words of a text at
once from running sums (Karp and Rabin 1987), then mixed. It is the same in every process and on
every machine.
"""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

U64: TypeAlias = NDArray[np.uint64]
I64: TypeAlias = NDArray[np.int64]

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_JOIN = 0xD6E8FEB86659FD93
_BLOCK = 1 << 20
"""Characters that are looked at together."""
_APART, _INSIDE, _ALONE = 0, 1, 2
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF),  # Thai, Lao, Burmese, Khmer
    (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)  # fmt: skip


class Words(NamedTuple):
    """The words of a text: runs of letters, digits and marks; a sign of a script without spaces."""

    text: str
    """In small letters, each at the place it had."""
    starts: I64
    """(words,) where each begins."""
    ends: I64
    hashes: U64
    """(words,) one number a word."""


def words(text: str) -> Words:
    """The words of a text, without regard to case."""
    text = small(text)
    found = [_words(piece, offset) for offset, piece in _blocks(text)]
    if len(found) == 1:
        return Words(text, *found[0])
    starts, ends, hashes = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Words(text, starts, ends, hashes)


def small(text: str) -> str:
    """A text in small letters that is as long as it was ("İ" stays, which would become two)."""
    lower = text.lower()
    if len(lower) == len(text):
        return lower
    return "".join(low if len(low := c.lower()) == 1 else c for c in text)


def shingles(hashes: U64, n: int) -> U64:
    """(max(words - n + 1, 1),) one number for each n words in a row; fewer words are one."""
    n = min(n, len(hashes))
    if n == 0:
        return hashes
    count = len(hashes) - n + 1
    joined = np.zeros(count, np.uint64)
    for shift in range(n):
        joined = joined * np.uint64(_JOIN) + hashes[shift : shift + count]
    return mixed(joined)


def mixed(numbers: U64) -> U64:
    """Each number with its bits spread (Steele et al. 2014, SplitMix64's finaliser)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """Pieces of a long text, cut between words where there is a space at all."""
    first = 0
    while len(text) - first > _BLOCK:
        cut = text.rfind(" ", first + _BLOCK // 2, first + _BLOCK) + 1 or first + _BLOCK
        yield first, text[first:cut]
        first = cut
    yield first, text[first:] if first else text


def _words(text: str, offset: int) -> tuple[I64, I64, U64]:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds()[codes]
    inside = kinds == _INSIDE
    alone = kinds == _ALONE
    begins, stops = inside.copy(), inside.copy()
    begins[1:] &= ~inside[:-1]
    stops[:-1] &= ~inside[1:]
    starts, ends = np.flatnonzero(begins | alone), np.flatnonzero(stops | alone) + 1
    powers, inverses = _powers(1 << max(10, len(codes).bit_length()))
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum((codes.astype(np.uint64) + np.uint64(1)) * powers[: len(codes)], out=sums[1:])
    hashes = mixed((sums[ends] - sums[starts]) * inverses[starts])
    return starts + offset, ends + offset, hashes


@functools.lru_cache(2)
def _powers(size: int) -> tuple[U64, U64]:
    """BASE^k and BASE^-k modulo 2^64."""
    powers, inverses = np.full(size, _BASE, np.uint64), np.full(size, _INVERSE, np.uint64)
    powers[0] = inverses[0] = 1
    return np.cumprod(powers), np.cumprod(inverses)


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """(code points,) whether one is part of a word, a word of its own, or between words."""
    kinds = np.zeros(sys.maxunicode + 1, np.uint8)
    for code in range(0x323B0):
        if unicodedata.category(chr(code))[0] in "LNM":
            kinds[code] = _INSIDE
    for first, last in _UNSPACED:
        part = kinds[first : last + 1]
        part[part == _INSIDE] = _ALONE
    return kinds
