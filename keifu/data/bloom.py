"""A Bloom filter: a set of 64-bit numbers in fixed memory that may say yes to a few it never saw.

Bloom 1970. With m bits for n numbers and k = m/n ln 2 hashes, the share of false yeses is about
exp(-m/n (ln 2)^2). The k places follow from two halves of one number (Kirsch, Mitzenmacher 2006).
"""

from __future__ import annotations

import math

from keifu.core.errors import KeifuError


class Bloom:
    """A set that can be added to and asked."""

    def __init__(self, capacity: int, error: float = 1e-6) -> None:
        if capacity < 1 or not 0 < error < 1:
            raise KeifuError(f"a Bloom filter of {capacity} numbers and {error} false yeses")
        self.bits = max(64, math.ceil(-capacity * math.log(error) / math.log(2) ** 2))
        self.hashes = max(1, round(self.bits / capacity * math.log(2)))
        self._table = bytearray((self.bits + 7) // 8)

    def add(self, number: int) -> bool:
        """Put a number in; whether it was there before (or seems to have been)."""
        first, second = number & 0xFFFFFFFF, (number >> 32) | 1
        new = False
        for turn in range(self.hashes):
            place = (first + turn * second + turn * turn) % self.bits
            byte, bit = place >> 3, 1 << (place & 7)
            if not self._table[byte] & bit:
                new = True
                self._table[byte] |= bit
        return not new

    def __contains__(self, number: int) -> bool:
        first, second = number & 0xFFFFFFFF, (number >> 32) | 1
        places = ((first + t * second + t * t) % self.bits for t in range(self.hashes))
        return all(self._table[place >> 3] & (1 << (place & 7)) for place in places)
