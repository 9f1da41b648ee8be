"""A retriever by words: BM25 (Robertson & Zaragoza 2009, k1 = 1.2, b = 0.75), by SQLite's FTS5.

SQLite comes with Python, so this needs no package, no model and no file.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Sequence

from keifu.retrieval.retriever import Hit

MOST_TERMS = 64
"""Different words of a query that are looked for."""

_WORD = re.compile(r"\w+")
_NO_SPACES = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af]+")
"""Kana, Han and Hangul: scripts whose words a run of letters does not show."""


def terms(text: str) -> list[str]:
    """The words of a text as they are compared; two letters each where no spaces part them."""
    found = []
    for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold()):
        place = 0
        for run in _NO_SPACES.finditer(word):
            found += [word[place : run.start()]] if run.start() > place else []
            letters = run[0]
            found += [letters[i : i + 2] for i in range(max(1, len(letters) - 1))]
            place = run.end()
        found += [word[place:]] if place < len(word) else []
    return found


def match(query: str) -> str:
    """The FTS5 expression that finds any of a query's words; "" if it has none."""
    words = list(dict.fromkeys(terms(query)))[:MOST_TERMS]
    return " OR ".join(f'"{word}"' for word in words)


class Lexical:
    """BM25 over texts in memory."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._base = sqlite3.connect(":memory:", check_same_thread=False)
        self._base.execute(
            "create virtual table words using fts5(terms, tokenize = 'porter unicode61')"
        )

    def add(self, texts: Sequence[str]) -> None:
        """Take more texts."""
        rows = [(len(self._texts) + n, " ".join(terms(text))) for n, text in enumerate(texts)]
        self._base.executemany("insert into words(rowid, terms) values (?, ?)", rows)
        self._texts += texts

    def search(self, query: str, k: int) -> list[Hit]:
        """Texts that share a word with the query, the best first."""
        if not (expression := match(query)):
            return []
        rows = self._base.execute(
            "select rowid, -bm25(words) from words where words match ? order by 2 desc, 1 limit ?",
            (expression, k),
        )
        return [Hit(index, score, self._texts[index]) for index, score in rows]
