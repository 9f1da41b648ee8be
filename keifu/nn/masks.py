"""Which keys a query may see, as values that combine with `&` and `|`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """Places of one row that masks speak of. They follow from its tokens, so they come with it."""

    prefix: int = 0
    """Leading tokens that a prefix-LM mask shows to all."""
    gist: tuple[int, int] | None = None
    """The first gist token's position and the one after the last's (Mu et al. 2023)."""

    def __post_init__(self) -> None:
        """Refuse a span of gist tokens that is none."""
        if self.gist is not None and not 0 <= self.gist[0] < self.gist[1]:
            raise ValueError(f"gist tokens from {self.gist[0]} to {self.gist[1]} are none")


UNMARKED = Landmarks()
"""A row without any."""


class Mask:
    """A rule on positions. `allowed` gives it as booleans for one block of queries and keys."""

    def allowed(self, query: Tensor, key: Tensor, landmarks: Landmarks = UNMARKED) -> Tensor:
        """Visible pairs: query positions (n, 1), key positions (1, m) -> bool (n, m)."""
        raise NotImplementedError

    def given(self, landmarks: Landmarks) -> Mask:
        """The rule for a row with these landmarks, without what does not matter to it."""
        return self

    @property
    def back(self) -> int | None:
        """A query sees keys at most this many positions back (itself counts); None: any."""
        return None

    @property
    def sinks(self) -> int:
        """Keys at positions below this stay visible however far back they are."""
        return 0

    @property
    def ahead(self) -> bool:
        """Whether a query may see keys after itself."""
        return True

    def reach(self, query: int, limit: int, landmarks: Landmarks = UNMARKED) -> int:
        """The last position that this query or an earlier one may see, in a row of `limit`.

        A row runs in steps where this is the step's own last position: what a state holds is the
        past, so all else that a query sees must come with it.
        """
        return limit - 1

    def __and__(self, other: Mask) -> Mask:
        return Both(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Either(self, other)


@dataclass(frozen=True)
class Full(Mask):
    """Every query sees every key (encoders, cross-attention)."""

    def allowed(self, query: Tensor, key: Tensor, landmarks: Landmarks = UNMARKED) -> Tensor:
        """All true."""
        return torch.ones_like(query == key)


@dataclass(frozen=True)
class Causal(Mask):
    """A query sees itself and what came before."""

    def allowed(self, query: Tensor, key: Tensor, landmarks: Landmarks = UNMARKED) -> Tensor:
        """key <= query."""
        return key <= query

    def reach(self, query: int, limit: int, landmarks: Landmarks = UNMARKED) -> int:
        """Itself."""
        return query

    @property
    def ahead(self) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class Window(Mask):
    """A query sees the last `width` positions, itself included, and the first `keep` always.

    Mistral's sliding window and GPT-3's locally banded layers; `keep` are attention sinks
    (Xiao et al. 2023). Looks back only: combine with `Causal` for decoders.
    """

    width: int
    keep: int = 0

    def allowed(self, query: Tensor, key: Tensor, landmarks: Landmarks = UNMARKED) -> Tensor:
        """query - key < width, or key < keep."""
        return (query - key < self.width) | (key < self.keep)

    @property
    def back(self) -> int | None:
        """The width."""
        return self.width

    @property
    def sinks(self) -> int:
        """The positions that stay visible."""
        return self.keep


@dataclass(frozen=True)
class Prefix(Mask):
    """Every query sees the row's prefix (prefix-LM: `Causal() | Prefix()`)."""

    def allowed(self, query: Tensor, key: Tensor, landmarks: Landmarks = UNMARKED) -> Tensor:
        """key < prefix."""
        return (key < landmarks.prefix) & (query >= 0)

    def reach(self, query: int, limit: int, landmarks: Landmarks = UNMARKED) -> int:
        """The prefix's end."""
        return landmarks.prefix - 1


@dataclass(frozen=True)
class Gist(Mask):
    """After the last gist token a query sees nothing before the first (Mu et al. 2023, section 3).

    And up to the last gist token, no query sees what comes after it; so what follows knows the
    prompt through the gist tokens alone. A row without gist tokens is left as it is. Decoders
    have `Causal() & Gist()`, encoders `Full() & Gist()`.
    """

    def since(self, landmarks: Landmarks) -> int:
        """The first position that what comes after the gist tokens may see."""
        return 0 if landmarks.gist is None else landmarks.gist[0]

    def allowed(self, query: Tensor, key: Tensor, landmarks: Landmarks = UNMARKED) -> Tensor:
        """key < end for query < end, and key >= since for the others."""
        if landmarks.gist is None:
            return torch.ones_like(query == key)
        end = landmarks.gist[1]
        return torch.where(query < end, key < end, key >= self.since(landmarks))

    def given(self, landmarks: Landmarks) -> Mask:
        """Nothing, for a row without gist tokens."""
        return Full() if landmarks.gist is None else self

    def reach(self, query: int, limit: int, landmarks: Landmarks = UNMARKED) -> int:
        """The last gist token, up to it."""
        end = 0 if landmarks.gist is None else landmarks.gist[1]
        return end - 1 if query < end else limit - 1


@dataclass(frozen=True)
class Severed(Gist):
    """As `Gist`, but the gist tokens are not seen either: the paper's negative control."""

    def since(self, landmarks: Landmarks) -> int:
        """The position after the last gist token."""
        return 0 if landmarks.gist is None else landmarks.gist[1]


@dataclass(frozen=True, repr=False)
class Both(Mask):
    """Visible under both rules."""

    first: Mask
    second: Mask

    def __repr__(self) -> str:
        return f"{self.first} & {self.second}"

    def allowed(self, query: Tensor, key: Tensor, landmarks: Landmarks = UNMARKED) -> Tensor:
        """first and second."""
        return self.first.allowed(query, key, landmarks) & self.second.allowed(
            query, key, landmarks
        )

    @property
    def back(self) -> int | None:
        """The shorter reach."""
        reaches = [r for r in (self.first.back, self.second.back) if r is not None]
        return min(reaches, default=None)

    @property
    def sinks(self) -> int:
        """Sinks of either: keeping more than needed is safe, `allowed` decides."""
        return max(self.first.sinks, self.second.sinks)

    @property
    def ahead(self) -> bool:
        """Only if both allow it."""
        return self.first.ahead and self.second.ahead

    def given(self, landmarks: Landmarks) -> Mask:
        """What is left of either."""
        first, second = self.first.given(landmarks), self.second.given(landmarks)
        if isinstance(first, Full):
            return second
        return first if isinstance(second, Full) else Both(first, second)

    def reach(self, query: int, limit: int, landmarks: Landmarks = UNMARKED) -> int:
        """The nearer one."""
        return min(mask.reach(query, limit, landmarks) for mask in (self.first, self.second))


@dataclass(frozen=True, repr=False)
class Either(Mask):
    """Visible under at least one rule."""

    first: Mask
    second: Mask

    def __repr__(self) -> str:
        return f"{self.first} | {self.second}"

    def allowed(self, query: Tensor, key: Tensor, landmarks: Landmarks = UNMARKED) -> Tensor:
        """first or second."""
        return self.first.allowed(query, key, landmarks) | self.second.allowed(
            query, key, landmarks
        )

    @property
    def back(self) -> int | None:
        """Unbounded unless both are bounded."""
        if self.first.back is None or self.second.back is None:
            return None
        return max(self.first.back, self.second.back)

    @property
    def sinks(self) -> int:
        """The larger of both."""
        return max(self.first.sinks, self.second.sinks)

    @property
    def ahead(self) -> bool:
        """If either allows it."""
        return self.first.ahead or self.second.ahead

    def reach(self, query: int, limit: int, landmarks: Landmarks = UNMARKED) -> int:
        """The further one."""
        return max(mask.reach(query, limit, landmarks) for mask in (self.first, self.second))
