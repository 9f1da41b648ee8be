"""Masking for masked language models: tokens, whole words, annotated spans, n-grams.

Source: Devlin et al. 2019, section 3.1 and appendix A.1 (15 %, of which 80 % are masked, 10 %
replaced, 10 % kept); Liu et al. 2019, section 4.1 (dynamic); Sun et al. 2019, section 3.3 (phrases
and entities); Lan et al. 2020, section 4.1 (n-grams). What is hidden together is a unit: the places
of a word's pieces, of an entity. A unit is hidden whole or not at all.

    units = spans(ids, special, [(3, 7)])
    Masking(mask=103, vocab=30522)(ids, units, np.random.default_rng(0))
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from keifu.core.errors import KeifuError
from keifu.nn.losses import IGNORE

Random = np.random.Generator
Unit = tuple[int, ...]
"""Places of a row that are hidden together."""
Units = Callable[[Sequence[int], Random], Sequence[Unit]]
"""A row -> what may be hidden in it."""


@dataclass(frozen=True)
class Masked:
    """A row as the model reads it, and what it has to find."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    """The hidden tokens; IGNORE elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Masking:
    """How much is hidden, and how."""

    mask: int
    vocab: int
    """Replacements are drawn from ids below it that are not `special`."""
    special: frozenset[int] = frozenset()
    """Ids that no token is replaced by."""
    ratio: float = 0.15
    """Hidden tokens, of those that units hold."""
    masked: float = 0.8
    """Of the hidden ones, those that become the mask."""
    replaced: float = 0.1
    """Of the hidden ones, those that become another token; the rest stay as they are."""
    whole: bool = False
    """One draw a unit, so that a masked unit is masks alone (ERNIE); else one a token (BERT)."""

    def __post_init__(self) -> None:
        shares = (self.ratio, self.masked, self.replaced, self.masked + self.replaced)
        if not all(0 <= share <= 1 for share in shares):
            raise KeifuError("ratio, masked, replaced and the last two's sum are from 0 to 1")
        if self.replaced and len(self.special) >= self.vocab:
            raise KeifuError("every id is special: none is left to replace a token by")

    def __call__(self, ids: Sequence[int], units: Sequence[Unit], random: Random) -> Masked:
        """Hide units in random order as long as they fit into the budget, at least one token."""
        budget = max(1, round(self.ratio * len({place for unit in units for place in unit})))
        shown, labels, hidden = list(ids), [IGNORE] * len(ids), 0
        for number in random.permutation(len(units)).tolist():
            unit = units[number]
            taken = any(labels[place] != IGNORE for place in unit)
            if taken or not unit or hidden + len(unit) > budget:
                continue
            draws = random.random(1 if self.whole else len(unit))
            for n, place in enumerate(unit):
                labels[place] = ids[place]
                shown[place] = self._shown(ids[place], float(draws[min(n, len(draws) - 1)]), random)
            hidden += len(unit)
        return Masked(tuple(shown), tuple(labels))

    def _shown(self, token: int, draw: float, random: Random) -> int:
        if draw < self.masked:
            return self.mask
        if draw >= self.masked + self.replaced:
            return token
        while (other := int(random.integers(self.vocab))) in self.special:
            pass
        return other


def masked_rows(
    rows: Sequence[Sequence[int]], masking: Masking, units: Units, *, seed: int, epoch: int
) -> Iterator[Masked]:
    """Rows with masks of their own in each epoch (dynamic masking).

    A row's masks follow from the seed, the epoch and its number alone; always the same epoch is
    BERT's static masking.
    """
    for number, ids in enumerate(rows):
        random = np.random.default_rng(np.random.SeedSequence((seed, epoch, number)))
        yield masking(ids, units(ids, random), random)


def tokens(ids: Sequence[int], special: Collection[int]) -> list[Unit]:
    """Each token that is not special, by itself."""
    return [(place,) for place, token in enumerate(ids) if token not in special]


def words(
    ids: Sequence[int], special: Collection[int], inside: Callable[[int], bool]
) -> list[Unit]:
    """Whole words: a token that is `inside` one (WordPiece's ##) belongs to the token before it."""
    units: list[list[int]] = []
    open_word = False
    for place, token in enumerate(ids):
        if token in special:
            open_word = False
        elif open_word and inside(token):
            units[-1].append(place)
        else:
            units.append([place])
            open_word = True
    return [tuple(unit) for unit in units]


def spans(
    ids: Sequence[int], special: Collection[int], annotated: Sequence[tuple[int, int]]
) -> list[Unit]:
    """Annotated phrases or entities (start, stop) as units, all other tokens by themselves.

    Raises:
        KeifuError: spans overlap, leave the row, or hold a special token.
    """
    owner: dict[int, int] = {}
    for number, (start, stop) in enumerate(annotated):
        if not 0 <= start < stop <= len(ids):
            raise KeifuError(f"the span {start} to {stop} is not in a row of {len(ids)} tokens")
        for place in range(start, stop):
            if place in owner or ids[place] in special:
                what = "a special token" if ids[place] in special else "another span"
                raise KeifuError(f"the span {start} to {stop} holds {what} at {place}")
            owner[place] = number
    found = [tuple(range(start, stop)) for start, stop in annotated]
    return found + [unit for unit in tokens(ids, special) if unit[0] not in owner]


def ngrams(units: Sequence[Unit], random: Random, longest: int = 3) -> list[Unit]:
    """From each unit on n neighbours as one, n drawn with p(n) = (1/n) / (1 + 1/2 + ...).

    They overlap: of two that do, the one that is drawn first is hidden. Neighbours with a special
    token between them are not joined.
    """
    shares = 1 / np.arange(1, longest + 1)
    sizes = random.choice(np.arange(1, longest + 1), size=len(units), p=shares / shares.sum())
    return _runs(units, sizes.tolist())


def geometric(
    units: Sequence[Unit], random: Random, share: float = 0.2, longest: int = 10
) -> list[Unit]:
    """From each unit on n neighbours as one, p(n) = share * (1 - share)^(n - 1), n at most longest.

    SpanBERT's lengths, in words (Joshi et al. 2020, arXiv 1907.10529, section 3.1); overlaps as in
    `ngrams`.
    """
    sizes = np.arange(1, longest + 1)
    shares = share * (1 - share) ** (sizes - 1)
    drawn = random.choice(sizes, size=len(units), p=shares / shares.sum())
    return _runs(units, drawn.tolist())


def _runs(units: Sequence[Unit], sizes: Sequence[int]) -> list[Unit]:
    """From the n-th unit on sizes[n] neighbours joined."""
    ordered, found = sorted(units), []
    for first, size in enumerate(sizes):
        joined: list[int] = list(ordered[first])
        for unit in ordered[first + 1 : first + size]:
            if unit[0] != joined[-1] + 1:
                break
            joined.extend(unit)
        found.append(tuple(joined))
    return found


UNITS = ("token", "word", "span", "entity", "ngram")


def units_of(
    kind: str,
    ids: Sequence[int],
    special: Collection[int],
    inside: Callable[[int], bool],
    random: Random,
    annotated: Sequence[tuple[int, int]] = (),
) -> Sequence[Unit]:
    """What may be hidden in a row, by the kind of its units; never a special token."""
    if kind == "token":
        return tokens(ids, special)
    if kind == "entity":
        return spans(ids, special, annotated)
    found = words(ids, special, inside)
    if kind == "word" or not found:
        return found
    return geometric(found, random) if kind == "span" else ngrams(found, random)
