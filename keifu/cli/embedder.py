"""The model that compares texts for a verb that talks with another: loaded when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from keifu.cli import model
from keifu.cli.model import ModelOptions
from keifu.lm.budget import upper_bound
from keifu.lm.pieces import take

if TYPE_CHECKING:
    from keifu.lm.base import LM

EMBEDDER = "minilm-l6-v2"
"""The one that is taken if none is named."""


class Lazy:
    """An embedder that is fetched and loaded with the first text."""

    def __init__(self, name: str, options: ModelOptions) -> None:
        self.options = ModelOptions(
            model=name, threads=options.threads, device=options.device, offline=options.offline
        )
        self._lm: LM | None = None

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector a text; what is too long for the model loses its end."""
        if self._lm is None:
            model.find(self.options, quiet=True)
            self._lm = model.load(self.options)
        if self.options.model.partition(":")[0] in model.REMOTE:
            return self._lm.embed(texts)
        return self._lm.embed([self._beginning(text, self._lm) for text in texts])

    @staticmethod
    def _beginning(text: str, lm: LM) -> str:
        """As much of a text as the embedder can read: a question may carry a whole file."""
        bound = upper_bound(text)
        if bound is not None and bound <= lm.context:
            return text
        return take(text, lambda piece: lm.count_tokens(piece) <= lm.context)[0]

    def close(self) -> None:
        """Free it."""
        if self._lm is not None:
            self._lm.close()
