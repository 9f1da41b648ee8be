"""What every retriever is: texts go in, the nearest to a query come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Embed = Callable[[Sequence[str]], Sequence[Sequence[float]]]
"""Vectors of texts, as `LM.embed` gives them."""


@dataclass(frozen=True)
class Hit:
    """A text that was found."""

    index: int
    """Its number in the order of adding, from 0."""
    score: float
    """Higher is nearer; scores of two retrievers cannot be compared."""
    text: str


class Retriever(Protocol):
    """Takes texts and finds those that a query needs."""

    def add(self, texts: Sequence[str]) -> None:
        """Take more texts."""

    def search(self, query: str, k: int) -> list[Hit]:
        """At most `k` texts, the best first, equals in the order of adding."""
