"""Fill in the middle: a text's middle moves to its end, so that a decoder learns to put it in.

Source: Bavarian et al. 2022, arXiv 2207.14255, section 3: two places, drawn evenly, cut a text in
three; PSM says prefix, suffix, middle; SPM (its second form, so that both share what they learn)
suffix, then prefix and middle in one. Cuts are between tokens here, where the paper cuts between
characters before it tokenises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keifu.core.errors import KeifuError

Random = np.random.Generator
SPELT = {
    "prefix": ("<fim_prefix>", "<|fim_prefix|>", "<PRE>", "▁<PRE>", "<｜fim▁begin｜>"),
    "suffix": ("<fim_suffix>", "<|fim_suffix|>", "<SUF>", "▁<SUF>", "<｜fim▁hole｜>"),
    "middle": ("<fim_middle>", "<|fim_middle|>", "<MID>", "▁<MID>", "<｜fim▁end｜>"),
}
"""How published tokenizers spell the three signs."""


@dataclass(frozen=True, kw_only=True)
class Middles:
    """The signs and the shares."""

    prefix: int
    suffix: int
    middle: int
    rate: float = 0.5
    """Share of texts that are cut."""
    spm: float = 0.5
    """Of those, the share with the suffix first."""

    def __post_init__(self) -> None:
        if not (0 <= self.rate <= 1 and 0 <= self.spm <= 1):
            raise KeifuError(f"rate={self.rate} and spm={self.spm} are shares, from 0 to 1")

    def __call__(self, ids: Sequence[int], random: Random) -> list[int]:
        """The text as it is, or three signs longer."""
        if random.random() >= self.rate:
            return list(ids)
        first, second = sorted(random.integers(0, len(ids) + 1, 2).tolist())
        before, between, after = list(ids[:first]), list(ids[first:second]), list(ids[second:])
        if random.random() < self.spm:
            return [self.prefix, self.suffix, *after, self.middle, *before, *between]
        return [self.prefix, *before, self.suffix, *after, self.middle, *between]

    def whole(self, ids: Sequence[int]) -> tuple[list[int], bool]:
        """The text of a row, and whether it was cut. Of SPM its prefix and middle are one."""
        found = list(ids)
        if not found or found[0] != self.prefix or self.middle not in found:
            return found, False
        hole, end = found.index(self.suffix), found.index(self.middle)
        return found[1:hole] + found[end + 1 :] + found[hole + 1 : end], True
