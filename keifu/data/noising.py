"""BART's five noises: documents made worse, so that a model learns to restore them.

Source: Lewis et al. 2020, arXiv 1910.13461, section 2.2. A noise is a value; a tuple of them is
applied in order. What it gives says of every token which places of the document it stands for, so
that nothing about the document is lost: see `restored`. Tokens are ids, without the special ones
at the ends of a row, which stay outside.

    corrupt(ids, (SentencePermutation(ends=frozenset({4})), TextInfilling(mask=3)), seed=0)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from keifu.core.errors import KeifuError

Random = np.random.Generator


@dataclass(frozen=True)
class Noised:
    """A document on its way: what the encoder reads, and what the decoder has to say."""

    tokens: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]
    """Of each token, the places of the target it stands for: its own; those under a mask; none
    where a mask was put in."""
    target: tuple[int, ...]


class Noise(Protocol):
    """One way of making a document worse."""

    def __call__(self, given: Noised, random: Random) -> Noised:
        """The same target with other tokens."""


def corrupt(document: Sequence[int], noises: Iterable[Noise], *, seed: int) -> Noised:
    """A document after each noise in turn; the same seed, the same noise."""
    return noised(document, noises, np.random.default_rng(seed))


def noised(document: Sequence[int], noises: Iterable[Noise], random: Random) -> Noised:
    """The same by a chance that is given."""
    target = tuple(document)
    given = Noised(target, tuple((i,) for i in range(len(target))), target)
    for noise in noises:
        given = noise(given, random)
    return given


def corrupted(
    documents: Iterable[Sequence[int]], noises: Sequence[Noise], *, seed: int
) -> Iterator[Noised]:
    """Many documents, each with a seed of its own that does not depend on the others."""
    for index, document in enumerate(documents):
        own = int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
        yield corrupt(document, noises, seed=own)


def restored(given: Noised, mask: int) -> list[int | None]:
    """The target as far as the tokens still tell it: None where it was masked or deleted."""
    found: list[int | None] = [None] * len(given.target)
    for token, places in zip(given.tokens, given.places, strict=True):
        if token != mask and len(places) == 1:
            found[places[0]] = token
    return found


def _taken(given: Noised, order: Sequence[int]) -> Noised:
    """Some of the tokens, in another order."""
    return Noised(
        tuple(given.tokens[i] for i in order), tuple(given.places[i] for i in order), given.target
    )


def _chosen(length: int, ratio: float, random: Random) -> Collection[int]:
    """Round(ratio * length) indices."""
    count = round(ratio * length)
    return set(random.choice(length, size=count, replace=False).tolist()) if count else set()


def _check_ratio(ratio: float) -> None:
    if not 0 <= ratio <= 1:
        raise KeifuError(f"ratio={ratio} is not allowed: a part of the tokens, from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class TokenMasking:
    """Random tokens become the mask, as in BERT."""

    mask: int
    ratio: float = 0.15

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    def __call__(self, given: Noised, random: Random) -> Noised:
        """As long as before."""
        hidden = _chosen(len(given.tokens), self.ratio, random)
        tokens = tuple(self.mask if i in hidden else t for i, t in enumerate(given.tokens))
        return Noised(tokens, given.places, given.target)


@dataclass(frozen=True, kw_only=True)
class TokenDeletion:
    """Random tokens are gone: the model has to find where."""

    ratio: float = 0.15

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    def __call__(self, given: Noised, random: Random) -> Noised:
        """Shorter."""
        gone = _chosen(len(given.tokens), self.ratio, random)
        return _taken(given, [i for i in range(len(given.tokens)) if i not in gone])


@dataclass(frozen=True, kw_only=True)
class TextInfilling:
    """Spans of Poisson-distributed length become one mask each; of length 0, a mask comes in.

    Lengths are drawn until they cover `ratio` of the tokens, the last one cut to fit; then spans
    and the tokens left fall into one of their orders, all equally likely. The paper's rate is 3.
    """

    mask: int
    ratio: float = 0.3
    rate: float = 3.0

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)
        if not self.rate > 0:
            raise KeifuError(f"rate={self.rate} is not allowed: the mean length, above 0")

    def lengths(self, tokens: int, random: Random) -> list[int]:
        """The spans' lengths for a document of so many tokens."""
        left, found = round(self.ratio * tokens), list[int]()
        while left > 0:
            found.append(min(int(random.poisson(self.rate)), left))
            left -= found[-1]
        return found

    def __call__(self, given: Noised, random: Random) -> Noised:
        """Any span falls anywhere."""
        spans = self.lengths(len(given.tokens), random)
        units = [-1] * (len(given.tokens) - sum(spans)) + list(range(len(spans)))
        tokens, places, at = list[int](), list[tuple[int, ...]](), 0
        for unit in random.permutation(units).tolist() if units else ():
            stop = at + (1 if unit < 0 else spans[unit])
            tokens.append(given.tokens[at] if unit < 0 else self.mask)
            places.append(tuple(p for place in given.places[at:stop] for p in place))
            at = stop
        return Noised(tuple(tokens), tuple(places), given.target)


@dataclass(frozen=True, kw_only=True)
class SentencePermutation:
    """The document's sentences in random order; one ends with each token of `ends`."""

    ends: frozenset[int]

    def sentences(self, tokens: Sequence[int]) -> list[list[int]]:
        """Indices of the tokens, a list a sentence."""
        found: list[list[int]] = [[]]
        for i, token in enumerate(tokens):
            found[-1].append(i)
            if token in self.ends:
                found.append([])
        return found if found[-1] else found[:-1]

    def __call__(self, given: Noised, random: Random) -> Noised:
        """Every order equally likely."""
        found = self.sentences(given.tokens)
        order = random.permutation(len(found)).tolist()
        return _taken(given, [i for sentence in order for i in found[sentence]])


@dataclass(frozen=True, kw_only=True)
class DocumentRotation:
    """The document begins at a random token, and what was before it follows its end."""

    def __call__(self, given: Noised, random: Random) -> Noised:
        """Every token equally likely."""
        length = len(given.tokens)
        start = int(random.integers(length)) if length else 0
        return _taken(given, [*range(start, length), *range(start)])
