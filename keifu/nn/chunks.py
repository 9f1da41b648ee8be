"""Reading a source longer than its encoder: overlapping chunks, the middle of each kept.

Source: Ivgi et al. 2022, arXiv 2208.00748; Bertsch et al. 2023, arXiv 2305.01625.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keifu.core.errors import ConfigError

TOGETHER = 4096
"""Tokens of chunks that run in one pass; at least one chunk does."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Places `start` ... `end` of a row's source are read, `first` ... `last` of them kept."""

    row: int
    start: int
    end: int
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Chunks of `length` tokens, each half a length after the one before.

    The middle half of each is kept, so that what is kept has seen a quarter of a length on both
    sides; the first chunk keeps its beginning, the last, moved back to be whole, its end.
    """

    length: int

    def __post_init__(self) -> None:
        if self.length < 4:
            raise ConfigError(f"chunks of {self.length} tokens have no middle half: at least 4")

    def of(self, source: int, row: int = 0) -> list[Chunk]:
        """The chunks of a source of this many tokens; together they keep each place once."""
        margin, found, kept, start = self.length // 4, list[Chunk](), 0, 0
        while (end := start + self.length) < source:
            found.append(Chunk(row=row, start=start, end=end, first=kept, last=end - margin))
            kept, start = end - margin, end - 2 * margin
        last = max(source - self.length, 0)
        return [*found, Chunk(row=row, start=last, end=source, first=kept, last=source)]


def passes(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Chunks, in order, by the pass that they run in."""
    found: list[list[Chunk]] = []
    tokens = 0
    for chunk in chunks:
        size = chunk.end - chunk.start
        if not found or tokens + size > TOGETHER:
            found.append([])
            tokens = 0
        found[-1].append(chunk)
        tokens += size
    return found
