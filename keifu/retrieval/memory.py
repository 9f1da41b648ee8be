"""What is remembered: texts on disk that are searched by meaning or by words, and can be forgotten.

One SQLite file holds one user's (or one story's) memories. With an embedder each text has a vector,
and search compares those; without one it is BM25. Two processes may use a file at a time (WAL).
What is forgotten leaves the table, the index and the bytes of the file.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keifu.core.errors import FormatError, KeifuError
from keifu.core.folders import data_folder, writable_folder
from keifu.retrieval.dense import unit
from keifu.retrieval.lexical import match, terms
from keifu.retrieval.retriever import Embed

SCHEMA = 1
MOST = 10_000
"""Memories in one file."""
MOST_TEXT = 16_384
"""Characters of one memory."""
WAIT = 5.0
"""Seconds to wait for another process that is writing."""
FOLDER = "memories"

_MARK = 0x4B_45_49_46  # "KEIF", SQLite's application_id
_USER = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))}
_TABLES = """
begin immediate;
create table if not exists facts (name text primary key, value text not null);
create table if not exists memories (
    id integer primary key autoincrement,
    key text unique,
    text text not null,
    made real not null,
    vector blob
);
create virtual table if not exists words using fts5(terms, tokenize = 'porter unicode61');
pragma application_id = {mark};
pragma user_version = {schema};
commit;
"""


@dataclass(frozen=True)
class Embedder:
    """What makes vectors, and the name it is known by."""

    name: str
    embed: Embed


@dataclass(frozen=True)
class Remembered:
    """One memory."""

    id: int
    text: str
    made: float
    """When it was made, in seconds since 1970."""
    key: str | None = None
    score: float = 0.0
    """Of a search: higher is nearer."""


class Memory:
    """An open file of memories; close it, or use it in a `with`."""

    def __init__(self, path: Path, embedder: Embedder | None = None) -> None:
        """Open or make the file. Raises FormatError, KeifuError (locked, another embedder)."""
        self.path, self.embedder = path, embedder
        with self._guard():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._base = sqlite3.connect(
                path, timeout=WAIT, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._base.close()
                raise

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        with self._guard():
            return int(self._base.execute("select count(*) from memories").fetchone()[0])

    @property
    def kept_by(self) -> tuple[str, int] | None:
        """The embedder that made the vectors here and their width ("" and 0: there are none).

        None while nothing was ever added.
        """
        with self._guard():
            facts = dict(self._base.execute("select name, value from facts"))
        return (facts["embedder"], int(facts["width"])) if "embedder" in facts else None

    def add(self, text: str, *, key: str | None = None) -> int:
        """Keep a text; its id. The same text again is the same memory; a key's old text goes."""
        text = _checked(text)
        vector, width = None, 0
        if self.embedder:
            found = unit(self.embedder.embed([text]))[0]
            vector, width = found.astype("<f4").tobytes(), len(found)
        self._agree(width)
        with self._guard(), self._writing():
            if key is None:
                rows = self._base.execute("select id from memories where text = ?", (text,))
                if same := rows.fetchone():
                    return int(same[0])
            else:
                old = self._base.execute("select id from memories where key = ?", (key,))
                self._delete([row[0] for row in old])
            if self._base.execute("select count(*) from memories").fetchone()[0] >= MOST:
                raise KeifuError(f"{MOST} memories are kept: forget some first")
            made = self._base.execute(
                "insert into memories (key, text, made, vector) values (?, ?, ?, ?)",
                (key, text, time.time(), vector),
            )
            id = made.lastrowid
            assert id is not None
            self._base.execute(
                "insert into words (rowid, terms) values (?, ?)", (id, " ".join(terms(text)))
            )
            name = self.embedder.name if self.embedder else ""
            for fact in (("embedder", name), ("width", str(width))):
                self._base.execute("insert or ignore into facts values (?, ?)", fact)
            return id

    def search(self, query: str, k: int, *, least: float = 0.0) -> list[Remembered]:
        """At most `k` memories, the nearest first.

        By the vectors' cosine if this was opened with their embedder, and none below `least`; by
        words (BM25) otherwise.
        """
        if self.embedder and (kept := self.kept_by) and kept[1]:
            wanted = unit(self.embedder.embed([query]))[0]
            self._agree(len(wanted))
            with self._guard():
                rows = list(self._base.execute("select id, vector from memories order by id"))
            if not rows:
                return []
            table = np.frombuffer(b"".join(row[1] for row in rows), "<f4")
            if table.size != len(rows) * len(wanted):
                raise FormatError(f"{self.path} is damaged: its vectors have not {kept[1]} numbers")
            scores = table.reshape(len(rows), -1) @ wanted
            best = [i for i in np.argsort(-scores, kind="stable")[:k] if scores[i] >= least]
            return self._read([(rows[i][0], float(scores[i])) for i in best])
        if not (expression := match(query)):
            return []
        with self._guard():
            found = self._base.execute(
                "select rowid, -bm25(words) from words where words match ? "
                "order by 2 desc, 1 limit ?",
                (expression, k),
            ).fetchall()
        return self._read(found)

    def all(self) -> list[Remembered]:
        """Every memory, the oldest first."""
        with self._guard():
            rows = self._base.execute("select id from memories order by id").fetchall()
        return self._read([(row[0], 0.0) for row in rows])

    def forget(self, *ids: int) -> int:
        """Remove memories for good, from the index and the file's bytes too; how many there were.

        Raises KeifuError if another process keeps the old bytes in use: then they are gone from
        every search at once, and from the file when it is next opened alone.
        """
        with self._guard(), self._writing():
            gone = self._delete(ids)
            if gone:
                self._base.execute("insert or replace into facts values ('unclean', '1')")
        if gone:
            self._scrub()
        return gone

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def _prepare(self) -> None:
        """Settings, tables, and whatever an interrupted `forget` left to do."""
        self._base.execute("begin")  # the three are of one moment
        (tables,) = self._base.execute("select count(*) from sqlite_master").fetchone()
        (mark,) = self._base.execute("pragma application_id").fetchone()
        (schema,) = self._base.execute("pragma user_version").fetchone()
        self._base.execute("commit")
        if tables and mark != _MARK:
            raise FormatError(f"{self.path} is no file of memories: move it away")
        if schema > SCHEMA:
            raise FormatError(f"{self.path} was written by a newer Keifu: update Keifu")
        for setting in ("secure_delete = on", "temp_store = memory", "journal_mode = wal"):
            self._base.execute(f"pragma {setting}")
        (well,) = self._base.execute("pragma quick_check(1)").fetchone()
        if well != "ok":
            raise FormatError(f"{self.path} is damaged ({well}): move it away")
        if not tables:
            self._base.executescript(_TABLES.format(mark=_MARK, schema=SCHEMA))
        elif self._base.execute("select 1 from facts where name = 'unclean'").fetchone():
            self._scrub()

    def _agree(self, width: int) -> None:
        """Refuse vectors of another embedder than the one that is at work here."""
        kept = self.kept_by
        mine = (self.embedder.name if self.embedder else "", width)
        if kept is not None and kept != mine:
            shown = [f"{name} ({size} numbers)" if name else "none" for name, size in (kept, mine)]
            raise KeifuError(
                f"{self.path.stem}: these memories were kept with the embedder {shown[0]}, "
                f"not {shown[1]}: open them with that one"
            )

    def _delete(self, ids: Sequence[int]) -> int:
        gone = 0
        for id in ids:
            gone += self._base.execute("delete from memories where id = ?", (id,)).rowcount
            self._base.execute("delete from words where rowid = ?", (id,))
        return gone

    def _scrub(self) -> None:
        """Write the index and the file anew, and empty the log, so that no old byte is left."""
        with self._guard():
            self._base.execute("insert into words (words) values ('rebuild')")
            self._base.execute("vacuum")
            (busy, *_) = self._base.execute("pragma wal_checkpoint(truncate)").fetchone()
            if busy:
                raise KeifuError(
                    "forgotten, but another process is reading the file: its old bytes go when "
                    "the memories are next opened"
                )
            self._base.execute("delete from facts where name = 'unclean'")

    def _read(self, found: Sequence[tuple[int, float]]) -> list[Remembered]:
        """The memories of these ids; one that another process just forgot is left out."""
        memories = []
        with self._guard():
            for id, score in found:
                row = self._base.execute(
                    "select text, made, key from memories where id = ?", (id,)
                ).fetchone()
                if row:
                    memories.append(Remembered(id, row[0], row[1], row[2], score))
        return memories

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction that either happens or does not."""
        self._base.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._base.execute("rollback")
            raise
        self._base.execute("commit")

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """What SQLite and the disk say, as one line that can be mended."""
        try:
            yield
        except sqlite3.OperationalError as wrong:
            if "locked" in str(wrong) or "busy" in str(wrong):
                raise KeifuError(
                    f"{self.path} is in use by another process for {WAIT:.0f} s: try again"
                ) from None
            raise KeifuError(f"{self.path}: {wrong}") from None
        except sqlite3.DatabaseError as wrong:
            raise FormatError(f"{self.path} is damaged ({wrong}): move it away") from None
        except OSError as wrong:
            raise KeifuError(f"cannot open {self.path}: {wrong.strerror}") from None


def file_of(user: str) -> Path:
    """Where a user's memories are kept; the folder is made. Raises KeifuError for a bad name."""
    check_user(user)
    return writable_folder(FOLDER)[0] / f"{user}.sqlite"


def check_user(user: str) -> None:
    """Refuse what cannot name a user. Raises KeifuError."""
    if not _USER.fullmatch(user) or user in _DEVICES:
        raise KeifuError(
            f"{user[:80]!r} cannot name a user: up to 64 small letters, digits, - and _, no path"
        )


def users() -> list[str]:
    """Users of whom something is remembered."""
    found = (path.stem for path in (data_folder() / FOLDER).glob("*.sqlite"))
    return sorted(name for name in found if _USER.fullmatch(name))


def _checked(text: str) -> str:
    """A text that can be kept."""
    text = text.strip()
    if not text:
        raise KeifuError("there is nothing to remember: the text is empty")
    if len(text) > MOST_TEXT:
        raise KeifuError(f"a memory has at most {MOST_TEXT} characters, not {len(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise KeifuError("what is to be remembered is no valid Unicode text") from None
    if "\0" in text:
        raise KeifuError("what is to be remembered has a NUL character: give text")
    return text
