"""A shuffled order of n things without a list of them: a permutation as a formula.

Source: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", section 5 (a generalised
Feistel network over a * b >= n; a result outside n is enciphered again, "cycle walking"). The round
function is splitmix64's finaliser (Steele, Lea and Flood 2014, figure 17) of a key and the half.
Nothing is stored, any place is known at once, and seed and epoch say everything.

    order = Permutation(size=10**12, seed=0, epoch=3)
    order(7)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from keifu.core.errors import KeifuError

_ROUNDS = 8
_MASK = (1 << 64) - 1
_LARGEST = 1 << 62


def mixed(value: int) -> int:
    """64 bits that follow from 64 bits and look like chance."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def key(*words: int) -> int:
    """64 bits that follow from several numbers, in their order."""
    found = 0
    for word in words:
        found = mixed(found ^ mixed(word & _MASK))
    return found


@lru_cache(maxsize=256)
def _keys(seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(key(seed, epoch, number) for number in range(_ROUNDS))


@dataclass(frozen=True, kw_only=True)
class Permutation:
    """A one-to-one map of 0 ... size - 1 onto itself."""

    size: int
    seed: int
    epoch: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.size <= _LARGEST:
            raise KeifuError(f"{self.size} things have no order: 1 to 2^62 do")

    @cached_property
    def _sides(self) -> tuple[int, int]:
        """The smallest a * b >= size with a the root: fewer than a results fall outside."""
        a = math.isqrt(self.size - 1) + 1
        return a, -(-self.size // a)

    def __call__(self, place: int) -> int:
        """What stands at a place of the order."""
        if not 0 <= place < self.size:
            raise KeifuError(f"place {place} is not in an order of {self.size}")
        a, b = self._sides
        keys = _keys(self.seed, self.epoch)
        while True:
            low, high = place % a, place // a
            for n in range(0, _ROUNDS, 2):
                low = (low + mixed(high ^ keys[n])) % a
                high = (high + mixed(low ^ keys[n + 1])) % b
            place = a * high + low
            if place < self.size:
                return place

    def many(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """What stands at many places, as `__call__` says of each."""
        a, b = (np.uint64(side) for side in self._sides)
        keys = np.array(_keys(self.seed, self.epoch), np.uint64)
        found = places.astype(np.uint64)
        walking = np.arange(len(found))
        while walking.size:
            high, low = np.divmod(found[walking], a)
            for n in range(0, _ROUNDS, 2):
                low = (low + _mixed(high ^ keys[n]) % a) % a
                high = (high + _mixed(low ^ keys[n + 1]) % b) % b
            found[walking] = a * high + low
            walking = walking[found[walking] >= np.uint64(self.size)]
        return found.astype(np.int64)


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`mixed` of many."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
