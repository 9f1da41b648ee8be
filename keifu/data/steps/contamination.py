"""Text of evaluation sets inside the corpus, by n-grams of words.

Brown et al. 2020 (GPT-3), arXiv 2005.14165, appendix C: 13-grams of words without punctuation, in
small letters; an example with fewer words counts whole, but eight at least. `cut` removes the match
with 200 characters on both sides and keeps pieces of at least 200, if there are at most ten; `drop`
leaves the document out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from keifu.core.errors import KeifuError
from keifu.data.document import Change, Document, Dropped, Record
from keifu.data.read import records
from keifu.data.shingles import I64, U64, Words, shingles, words
from keifu.data.step import DocumentStep

_FEWEST = 8
_PIECES = 10


class _Grams(NamedTuple):
    """n-grams of the evaluation sets of one length, sorted."""

    size: int
    numbers: U64
    places: tuple[str, ...]
    """Where each stands."""


@dataclass(frozen=True, kw_only=True)
class Contamination(DocumentStep):
    """Finds what evaluation sets hold, and says where."""

    against: tuple[str, ...] = ()
    """Evaluation sets: files, folders or hub data sets; all text of their rows counts"""
    words: int = 13
    """Words in a row that are a match"""
    action: Literal["drop", "cut"] = "drop"
    """Whether a document with a match goes, or the match and what is around it"""
    around: int = 200
    """Characters on both sides that are cut; shorter pieces go, too"""

    def __post_init__(self) -> None:
        if self.words < _FEWEST:
            raise KeifuError(f"contamination: fewer than {_FEWEST} words match by chance")

    def start(self) -> Change:
        """The function that does it, with an index of the evaluation sets."""
        if not self.against:
            raise KeifuError("contamination: name the evaluation sets (against: [FILE ...])")
        grams = list(_indexed(self.against, self.words))

        def change(document: Document) -> Document | Dropped:
            found = words(document.text)
            starts, ends, place = _hits(found, grams)
            if not len(starts):
                return document
            said = found.text[starts[0] : ends[0]].replace("\n", " ")
            detail = f"{place}: {said[:120]!r}"
            if self.action == "drop":
                return Dropped("contaminated", detail)
            pieces = list(self._pieces(document.text, starts, ends))
            if not pieces or len(pieces) > _PIECES:
                return Dropped("contaminated", detail)
            meta = {**document.meta, "contamination": detail}
            return replace(document, text="\n\n".join(pieces), meta=meta)

        return change

    def _pieces(self, text: str, starts: I64, ends: I64) -> Iterator[str]:
        """What is left of a text away from its matches."""
        at = 0
        for start, end in [*zip(starts.tolist(), ends.tolist(), strict=True), (None, None)]:
            stop = len(text) if start is None else max(at, start - self.around)
            piece = text[at:stop].strip()
            if len(piece) >= self.around:
                yield piece
            at = at if end is None else max(at, end + self.around)


def _hits(found: Words, grams: list[_Grams]) -> tuple[I64, I64, str]:
    """Where matches start and end in a text, in order, and where the first one stands."""
    starts, ends, place = [], [], ""
    for size, numbers, places in grams:
        if len(found.hashes) < size:
            continue
        mine = shingles(found.hashes, size)
        at = np.minimum(np.searchsorted(numbers, mine), len(numbers) - 1)
        hits = np.flatnonzero(numbers[at] == mine)
        if len(hits):
            place = place or places[at[hits[0]]]
            starts.append(found.starts[hits])
            ends.append(found.ends[hits + size - 1])
    if not starts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), ""
    every, last = np.concatenate(starts), np.concatenate(ends)
    order = np.argsort(every, kind="stable")
    return every[order], last[order], place


def _indexed(sources: tuple[str, ...], n: int) -> Iterator[_Grams]:
    """The n-grams of all sources; rows with fewer words by their own length."""
    found: dict[int, dict[int, str]] = {}
    for source in sources:
        for row in records(source):
            for text in _texts(row):
                hashes = words(text).hashes
                if len(hashes) >= _FEWEST:
                    size = min(n, len(hashes))
                    table = found.setdefault(size, {})
                    for number in shingles(hashes, size).tolist():
                        table.setdefault(number, row.place)
    if not found:
        raise KeifuError(f"contamination: no row of {', '.join(sources)} has {_FEWEST} words")
    for size in sorted(found, reverse=True):
        numbers = np.array(sorted(found[size]), np.uint64)
        yield _Grams(size, numbers, tuple(found[size][number] for number in numbers.tolist()))


def _texts(row: Record) -> Iterator[str]:
    """Every text of a row, each by itself, and a question with its answers as one."""
    texts = list(_strings(row.fields))
    yield from texts
    if len(texts) > 1:
        yield " ".join(texts)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


STEP = Contamination
