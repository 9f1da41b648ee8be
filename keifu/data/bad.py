"""Bad rows of data files: the first one stops the reading, or they are counted and left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from keifu.core.errors import FormatError

_SHOWN = 20


@dataclass
class Bad:
    """What was wrong with the rows of a reading."""

    skip: bool = False
    """Whether bad rows are left out; else the first one is a FormatError with its place."""
    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)
    """Places and faults of the first twenty."""
    reasons: Counter[str] = field(default_factory=Counter)

    def __call__(self, place: str, fault: str, remedy: str = "") -> None:
        """Say that the row at `place` is bad.

        Raises:
            FormatError: bad rows are not to be skipped.
        """
        if not self.skip:
            raise FormatError(f"{place}: {fault}" + (f": {remedy}" if remedy else "") + SKIP)
        self.count += 1
        self.reasons[fault.split(":")[0][:80]] += 1
        if len(self.examples) < _SHOWN:
            self.examples.append((place, fault))


SKIP = " (--skip-bad leaves such rows out and counts them)"
