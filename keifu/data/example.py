"""One thing to learn from, and numbered examples: the seam between data and training.

An `Examples` gives the number-th example of a whole run, from 0 and without end (epoch after epoch,
each in an order of its own), as a pure function of its seed and that number. So who asks (which
process, which micro-batch, before or after a restart) can never change what is learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from keifu.core.errors import KeifuError
from keifu.data.order import Permutation

Ids = NDArray[np.int64]
"""(tokens,) token ids."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """Token ids and what is known of them; what an objective does not ask for is not there."""

    ids: Ids
    """(tokens,) what is read."""
    pieces: tuple[int, ...] = ()
    """Tokens of each piece of a document in a packed row, in order; nothing may attend from one to
    another. Empty: `ids` is one document."""
    keep: NDArray[np.bool_] | None = None
    """(tokens,) the tokens that are to be learnt; None: all of them."""
    target: Ids | None = None
    """(written,) what is to be written of it: a translation, a summary, a matching text."""
    frames: NDArray[np.float32] | None = None
    """(frames, bins) a sound, whose labels are the target; `ids` is empty then."""
    label: int | None = None
    """Its class."""
    spans: tuple[tuple[int, int], ...] = ()
    """(start, stop) of entities and phrases in `ids`."""
    source: str = ""
    """The part of a mixture that it comes from."""

    def __post_init__(self) -> None:
        size = self.ids.shape[0]
        if self.pieces and (min(self.pieces) < 1 or sum(self.pieces) != size):
            raise KeifuError(f"pieces of {list(self.pieces)[:8]} tokens do not make {size}")
        if self.keep is not None and self.keep.shape != self.ids.shape:
            raise KeifuError(f"a mask of {self.keep.shape[0]} for {size} tokens")

    @classmethod
    def of(cls, ids: Sequence[int], *, target: Sequence[int] | None = None) -> Example:
        """From lists of ids."""
        written = None if target is None else np.asarray(target, np.int64)
        return cls(ids=np.asarray(ids, np.int64), target=written)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each piece; of the one document where it is not packed."""
        return self.pieces or (len(self.ids),)


class Examples(Protocol):
    """The examples of a run, by number."""

    @property
    def epoch(self) -> int | None:
        """How many examples see all of the data once; None: there is no such number."""

    def __call__(self, number: int) -> Example:
        """The number-th example of the run, from 0; the same one whenever it is asked for."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Examples in memory, each epoch in an order of its own."""

    items: Sequence[Example]
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        if not self.items:
            raise KeifuError("there are no examples to learn from")

    @property
    def epoch(self) -> int:
        """All of them."""
        return len(self.items)

    def __call__(self, number: int) -> Example:
        """The number-th example of the run."""
        return self.items[place(number, len(self.items), self.seed, self.shuffle)]


def place(number: int, size: int, seed: int, shuffle: bool = True) -> int:
    """Which of `size` items a run's number-th example is: epochs, each shuffled by itself."""
    if number < 0:
        raise KeifuError(f"there is no example {number}: they count from 0")
    epoch, at = divmod(number, size)
    return Permutation(size=size, seed=seed, epoch=epoch)(at) if shuffle else at
