"""What a checkpoint says of every output, whatever is asked: where it starts, what must not come.

Applied to one row of scores (logits, or a beam's log-probabilities) in the order of Hugging Face's
logits processors, so that greedy and beam search give what `generate` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keifu.inference.sampling import NEVER, forbid


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Token rules of a model; the defaults are no rules."""

    start: tuple[int, ...] = ()
    """What the decoder of an encoder-decoder reads before the first token it makes."""
    first: int | None = None
    """The first token made (mBART's language)."""
    last: int | None = None
    """The token made where the room ends (BART's </s>)."""
    never: tuple[int, ...] = ()
    """Tokens that are never made."""
    never_first: tuple[int, ...] = ()
    """Tokens that are not made first (after a forced one: second)."""
    never_after: tuple[tuple[int, ...], ...] = ()
    """Rows of tokens whose last one is not made after the others."""

    @property
    def forbid(self) -> bool:
        """Whether some token may not come somewhere."""
        return bool(self.never or self.never_first or self.never_after)

    @property
    def any(self) -> bool:
        """Whether they change any scores."""
        return self.forbid or self.first is not None or self.last is not None

    def apply(self, scores: Tensor, made: Sequence[int], *, last: bool) -> Tensor:
        """Scores (vocab,) with what the rules forbid at -inf; a forced token has score 0.

        Args:
            made: what the decoder has read so far, `start` included.
            last: whether the room ends with this token.
        """
        generated = len(made) - len(self.start)
        banned = [row[-1] for row in self.never_after if _ends_with(made, row[:-1])]
        out = forbid(scores, banned)
        forced = self.first if generated == 0 else None
        forced = self.last if last and self.last is not None else forced
        if forced is not None:
            out = torch.full_like(scores, NEVER)
            out[forced] = 0.0
        begins = 1 if self.first is not None and len(self.start) == 1 else 0
        at_start = self.never_first if generated == begins else ()
        return forbid(out, [*self.never, *at_start])


def no_repeat(scores: Tensor, tokens: Sequence[int], size: int) -> Tensor:
    """Scores without the tokens that would complete an n-gram already in `tokens`.

    Paulus et al. 2017, section 2.5 (trigrams).
    """
    if size <= 0 or len(tokens) + 1 < size:
        return scores
    tail = tuple(tokens[len(tokens) - size + 1 :])
    rows = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return forbid(scores, [row[-1] for row in rows if row[:-1] == tail])


def _ends_with(made: Sequence[int], row: Sequence[int]) -> bool:
    return len(made) >= len(row) and list(made[len(made) - len(row) :]) == list(row)
