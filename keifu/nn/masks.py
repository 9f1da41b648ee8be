"""Which keys a query may see, as values that combine with `&` and `|`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class Mask:
    """A rule on positions. `allowed` gives it as booleans for one block of queries and keys."""

    def allowed(self, query: Tensor, key: Tensor, prefix: int = 0) -> Tensor:
        """Visible pairs: query positions (n, 1), key positions (1, m) -> bool (n, m).

        `prefix` is how many leading tokens of the row are its prefix (for prefix-LM masks).
        """
        raise NotImplementedError

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

    @property
    def streams(self) -> bool:
        """Whether a row can run in steps: past its prefix no query sees a key after itself."""
        return not self.ahead

    def __and__(self, other: Mask) -> Mask:
        return Both(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Either(self, other)


@dataclass(frozen=True)
class Full(Mask):
    """Every query sees every key (encoders, cross-attention)."""

    def allowed(self, query: Tensor, key: Tensor, prefix: int = 0) -> Tensor:
        """All true."""
        return torch.ones_like(query == key)


@dataclass(frozen=True)
class Causal(Mask):
    """A query sees itself and what came before."""

    def allowed(self, query: Tensor, key: Tensor, prefix: int = 0) -> Tensor:
        """key <= query."""
        return key <= query

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

    def allowed(self, query: Tensor, key: Tensor, prefix: int = 0) -> Tensor:
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

    def allowed(self, query: Tensor, key: Tensor, prefix: int = 0) -> Tensor:
        """key < prefix."""
        return (key < prefix) & (query >= 0)

    @property
    def streams(self) -> bool:
        """Yes, if the prefix comes in one step."""
        return True


@dataclass(frozen=True, repr=False)
class Both(Mask):
    """Visible under both rules."""

    first: Mask
    second: Mask

    def __repr__(self) -> str:
        return f"{self.first} & {self.second}"

    def allowed(self, query: Tensor, key: Tensor, prefix: int = 0) -> Tensor:
        """first and second."""
        return self.first.allowed(query, key, prefix) & self.second.allowed(query, key, prefix)

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

    @property
    def streams(self) -> bool:
        """If either forbids what comes after."""
        return self.first.streams or self.second.streams


@dataclass(frozen=True, repr=False)
class Either(Mask):
    """Visible under at least one rule."""

    first: Mask
    second: Mask

    def __repr__(self) -> str:
        return f"{self.first} | {self.second}"

    def allowed(self, query: Tensor, key: Tensor, prefix: int = 0) -> Tensor:
        """first or second."""
        return self.first.allowed(query, key, prefix) | self.second.allowed(query, key, prefix)

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

    @property
    def streams(self) -> bool:
        """Only if both do."""
        return self.first.streams and self.second.streams
