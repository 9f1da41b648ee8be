"""Pairs of texts for encoders: does the second follow the first, are they in this order.

Source: Devlin et al. 2019, section 3.1, task 2 and appendix A.2; Lan et al. 2020, section 3.1. A
document is a list of sentences, a sentence a list of ids; marks are put round a pair later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from keifu.core.errors import KeifuError

Random = np.random.Generator
Document = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Pair:
    """Two texts and what is to be told of them."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    label: int
    """0: the second follows the first; 1: it does not, or comes before it."""


def next_sentence_pairs(
    documents: Sequence[Document], *, most: int, seed: int, other: float = 0.5, short: float = 0.1
) -> Iterator[Pair]:
    """BERT's pairs: half of the time the second text is from another document.

    Sentences that such a pair leaves unread are read by the next one.

    Args:
        most: tokens of both texts together.
        other: share of pairs from two documents.
        short: share of pairs that are made shorter, to look like what models are given later.

    Raises:
        KeifuError: there are no two documents, or no room.
    """
    if len([document for document in documents if any(document)]) < 2:
        raise KeifuError("pairs of the next sentence need two documents with some text")
    random = np.random.default_rng(seed)
    for number, document in enumerate(documents):
        left = [sentence for sentence in document if sentence]
        while left:
            size = _size(most, short, random)
            chunk = _chunk(left, size)
            cut = int(random.integers(1, len(chunk))) if len(chunk) > 1 else 1
            first = _joined(chunk[:cut])
            if len(chunk) == 1 or random.random() < other:
                second = _elsewhere(documents, number, size - len(first), random)
                yield Pair(*_fitted(first, second, size, random), 1)
                left = left[cut:]
            else:
                yield Pair(*_fitted(first, _joined(chunk[cut:]), size, random), 0)
                left = left[len(chunk) :]


def sentence_order_pairs(
    documents: Sequence[Document], *, most: int, seed: int, swapped: float = 0.5, short: float = 0.1
) -> Iterator[Pair]:
    """ALBERT's pairs: two neighbouring texts, half of the time in the wrong order.

    Arguments as for `next_sentence_pairs`. A sentence without a neighbour makes no pair.
    """
    random = np.random.default_rng(seed)
    for document in documents:
        left = [sentence for sentence in document if sentence]
        while len(left) > 1:
            size = _size(most, short, random)
            chunk = _chunk(left, size)
            chunk = chunk if len(chunk) > 1 else left[:2]
            left = left[len(chunk) :]
            cut = int(random.integers(1, len(chunk)))
            texts = _fitted(_joined(chunk[:cut]), _joined(chunk[cut:]), size, random)
            wrong = random.random() < swapped
            yield Pair(*(texts[::-1] if wrong else texts), int(wrong))


def sentences(ids: Sequence[int], ends: Callable[[int], bool]) -> list[list[int]]:
    """A text cut after each token that ends a sentence; a text of one sentence is cut in two."""
    found: list[list[int]] = [[]]
    for token in ids:
        found[-1].append(token)
        if ends(token):
            found.append([])
    found = [sentence for sentence in found if sentence]
    if len(found) == 1 and len(ids) > 1:
        return [list(ids[: len(ids) // 2]), list(ids[len(ids) // 2 :])]
    return found


def next_sentence(
    document: Document, other: Callable[[], Document], *, most: int, random: Random
) -> Pair:
    """One pair from the start of a document of two sentences or more: see `next_sentence_pairs`."""
    size = _size(most, 0.1, random)
    chunk = _two(document, size)
    cut = int(random.integers(1, len(chunk)))
    first, second, label = _joined(chunk[:cut]), _joined(chunk[cut:]), 0
    if random.random() < 0.5:
        others = other()
        start = int(random.integers(len(others)))
        second, label = _joined(_chunk(others[start:], max(1, size - len(first)))), 1
    return Pair(*_fitted(first, second, size, random), label)


def sentence_order(document: Document, *, most: int, random: Random) -> Pair:
    """One pair from the start of a document of two or more: see `sentence_order_pairs`."""
    size = _size(most, 0.1, random)
    chunk = _two(document, size)
    cut = int(random.integers(1, len(chunk)))
    texts = _fitted(_joined(chunk[:cut]), _joined(chunk[cut:]), size, random)
    wrong = random.random() < 0.5
    return Pair(*(texts[::-1] if wrong else texts), int(wrong))


def crop(ids: list[int], random: Random) -> list[int]:
    """A run of a tenth to a half of the tokens."""
    if len(ids) < 2:
        return []
    size = int(random.integers(max(1, len(ids) // 10), max(2, len(ids) // 2 + 1)))
    start = int(random.integers(len(ids) - size + 1))
    return ids[start : start + size]


def _two(document: Document, size: int) -> list[Sequence[int]]:
    """The sentences that reach `size` tokens, two at least."""
    chunk = _chunk(document, size)
    return chunk if len(chunk) > 1 else list(document[:2])


def _size(most: int, short: float, random: Random) -> int:
    """Tokens of a pair: usually all there is room for."""
    if most < 2:
        raise KeifuError(f"most={most} leaves no room for two texts")
    return int(random.integers(2, most + 1)) if random.random() < short else most


def _chunk(sentences: Sequence[Sequence[int]], size: int) -> list[Sequence[int]]:
    """The sentences from the start on that reach `size` tokens, or all of them."""
    taken, tokens = [], 0
    for sentence in sentences:
        taken.append(sentence)
        tokens += len(sentence)
        if tokens >= size:
            break
    return taken


def _elsewhere(documents: Sequence[Document], here: int, size: int, random: Random) -> list[int]:
    """About `size` tokens of another document, from a sentence on that is drawn."""
    others = [n for n, document in enumerate(documents) if n != here and any(document)]
    if not others:
        raise KeifuError("pairs of the next sentence need two documents with some text")
    document = [s for s in documents[others[int(random.integers(len(others)))]] if s]
    start = int(random.integers(len(document)))
    return _joined(_chunk(document[start:], max(1, size)))


def _joined(sentences: Sequence[Sequence[int]]) -> list[int]:
    return [token for sentence in sentences for token in sentence]


def _fitted(
    first: list[int], second: list[int], size: int, random: Random
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both, with tokens taken from either end of the longer until they fit."""
    texts = [list(first), list(second)]
    while sum(map(len, texts)) > size:
        longer = texts[0] if len(texts[0]) > len(texts[1]) else texts[1]
        del longer[0 if random.random() < 0.5 else -1]
    return tuple(texts[0]), tuple(texts[1])
