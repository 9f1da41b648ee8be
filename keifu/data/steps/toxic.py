"""Toxic lines: those with a word of a list; documents that have too many of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from keifu.core.errors import KeifuError
from keifu.data.document import Change, Document, Dropped
from keifu.data.step import DocumentStep

DEFAULT = (
    "porn", "porno", "pornhub", "xxx", "milf", "blowjob", "handjob", "cumshot", "gangbang",
    "hentai", "camgirl", "camgirls", "escorts", "nudes", "fuck", "fucked", "fucker", "fucking",
    "motherfucker", "cunt", "slut", "sluts", "whore", "whores", "bitches", "nigger", "niggers",
    "faggot", "faggots", "kike", "retards", "viagra", "cialis", "死ね", "傻逼", "操你",
)  # fmt: skip
"""Few words, for a start: give a list that fits your languages and purpose."""
_WORD = re.compile(r"\w+")
_LARGEST = 4 * 2**20


@dataclass(frozen=True, kw_only=True)
class Toxic(DocumentStep):
    """Leaves out lines with a listed word or phrase, case aside."""

    words: Path | None = None
    """A UTF-8 file of words and phrases, one a line (default: a small list of Keifu's)"""
    most: float = 0.2
    """A document of whose lines a larger share is toxic is left out"""

    def start(self) -> Change:
        """The function that does it."""
        listed = [word.casefold() for word in (_read(self.words) if self.words else DEFAULT)]
        single = frozenset(w for w in listed if w.isascii() and _WORD.fullmatch(w))
        inside = [re.escape(word) for word in listed if word not in single]
        phrases = re.compile("|".join(inside)) if inside else None

        def toxic(line: str) -> bool:
            line = line.casefold()
            if not single.isdisjoint(_WORD.findall(line)):
                return True
            return phrases is not None and phrases.search(line) is not None

        def change(document: Document) -> Document | Dropped:
            lines = document.text.split("\n")
            kept = [line for line in lines if not toxic(line)]
            if len(kept) == len(lines):
                return document
            real = sum(1 for line in lines if line.strip())
            share = (len(lines) - len(kept)) / real
            text = "\n".join(kept).strip("\n")
            if share > self.most or not text.strip():
                return Dropped("toxic", f"{share:.0%} of its lines")
            return replace(document, text=text)

        return change


def _read(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _LARGEST:
            raise KeifuError(f"{path}: a word list of more than {_LARGEST >> 20} MB")
        words = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as refused:
        raise KeifuError(f"cannot read the word list {path}: {refused}") from None
    if not any(words):
        raise KeifuError(f"the word list {path} is empty")
    return [word for word in words if word and not word.startswith("#")]


STEP = Toxic
