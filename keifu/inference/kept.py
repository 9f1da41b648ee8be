"""A past that requests continue: read once, shared by all who go on from it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from keifu.nn.masks import UNMARKED, Landmarks
from keifu.nn.past import Past
from keifu.nn.state import RequestState


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """What an encoder has read of a source, which later ones go on from."""

    past: Past
    """Keys and values of its self-attention."""
    hidden: Tensor
    """(positions held, width) its last hidden states, which the decoder reads."""


@dataclass(kw_only=True, eq=False)
class Kept:
    """One past of one engine. A request that continues it begins at position `length`.

    A decoder's is state in the engine's pool, which every request forks (pages are shared); an
    encoder's is what it has read of a source.
    """

    engine: object
    """Whose it is: no other can continue it."""
    length: int
    """Positions before it ends, forgotten ones too."""
    tokens: int
    """Positions that are held."""
    landmarks: Landmarks = UNMARKED
    state: RequestState | None = None
    source: Source | None = None

    @property
    def held(self) -> bool:
        """Whether it has not been released."""
        return self.state is not None or self.source is not None
