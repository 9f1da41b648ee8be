"""A retriever by meaning: the cosine between vectors of texts, every text compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from keifu.core.errors import KeifuError
from keifu.retrieval.retriever import Embed, Hit


def unit(vectors: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    """Vectors (texts, width) at length one; a vector of zeros stays. Raises KeifuError on NaN."""
    found = np.asarray(vectors, dtype=np.float32)
    if found.ndim != 2 or not np.isfinite(found).all():
        raise KeifuError("the embedder gave vectors that are no numbers or not of one length")
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.where(lengths == 0, 1, lengths), dtype=np.float32)


class Dense:
    """Cosine similarity over texts in memory; `embed` makes the vectors."""

    def __init__(self, embed: Embed) -> None:
        self.embed, self._texts = embed, list[str]()
        self._vectors: list[NDArray[np.float32]] = []

    def add(self, texts: Sequence[str]) -> None:
        """Take more texts."""
        if texts:
            self._vectors.append(unit(self.embed(texts)))
            self._texts += texts

    def search(self, query: str, k: int) -> list[Hit]:
        """The nearest texts, the best first."""
        if not self._texts:
            return []
        scores = np.concatenate(self._vectors) @ unit(self.embed([query]))[0]
        best = np.argsort(-scores, kind="stable")[:k]
        return [Hit(int(i), float(scores[i]), self._texts[i]) for i in best]
