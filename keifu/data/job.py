"""What there is to tokenise, divided into units that anyone can do: alone, in any order, again.

A unit is a part of one source's files: small files together, a byte range of a large file of
lines, else a whole file. How it is divided follows from the files' sizes alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from keifu.core.errors import FormatError, KeifuError
from keifu.data.bad import Bad
from keifu.data.document import Document, Record
from keifu.data.files import LONGEST, kind
from keifu.data.json_rows import parsed
from keifu.data.read import Reading, as_document, documents, files
from keifu.data.shards import check_name

WORK, PLAN = ".work", "plan.json"
_LEAST, _MOST, _UNITS = 1 << 20, 64 << 20, 64


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a document becomes ids."""

    column: str = "text"
    """Column that holds the text"""
    unit: Literal["file", "line", "paragraph"] = "file"
    """What one document of a text file is: "file", "line" or "paragraph\""""
    prompt: str | None = None
    """Column with a text that comes first and is not learnt"""
    target: str | None = None
    """Column with what is to be written of the text: a translation, a summary"""
    label: str | None = None
    """Column with a whole number: the text's class"""
    held_out: float = 0.0
    """Share of documents that go to the held-out split; equal texts go together"""
    skip_bad: bool = False
    """Whether rows that cannot be read are left out and counted; else the first is an error"""
    split: str | None = None
    """Split of data sets that have several"""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise KeifuError(f"held_out={self.held_out} is no share: 0 or more, and below 1")
        if self.unit not in ("file", "line", "paragraph"):
            raise KeifuError(f"unit={self.unit!r} is not allowed: file, line or paragraph")

    def reading(self) -> Reading:
        """As the readers of files know it."""
        return Reading(column=self.column, unit=self.unit, split=self.split)


@dataclass(frozen=True)
class Part:
    """Some of a file: the documents whose first byte is from start to stop."""

    path: str
    start: int = 0
    stop: int | None = None
    """None: the whole file, as its reader reads it."""


@dataclass(frozen=True)
class Unit:
    """What one worker does at a time."""

    source: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Job:
    """All of it; written down, so that whoever goes on does the same."""

    encoding: Encoding
    fingerprint: str
    vocabulary: int
    begin: tuple[int, ...]
    end: tuple[int, ...]
    shard_tokens: int
    files: Mapping[str, Sequence[tuple[str, int, int]]]
    """Of each source: path, bytes and time of change."""
    units: tuple[Unit, ...]

    def json(self) -> str:
        """As it is written down."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def read(cls, folder: Path) -> Job:
        """The job that was begun in a folder."""
        said: dict[str, Any] = json.loads((folder / WORK / PLAN).read_bytes())
        said["units"] = tuple(
            Unit(one["source"], tuple(Part(**part) for part in one["parts"]))
            for one in said["units"]
        )
        said["encoding"] = Encoding(**said["encoding"])
        said |= {name: tuple(said[name]) for name in ("begin", "end")}
        return cls(**said)


Listed = dict[str, list[tuple[str, int, int]]]


def listed(sources: Mapping[str, Sequence[str | Path]], encoding: Encoding) -> Listed:
    """The files of each source, with their sizes and times."""
    found: Listed = {}
    for name, places in sources.items():
        rows = []
        for place in places:
            for path in files(place, encoding.reading()):
                about = path.stat()
                rows.append((os.path.abspath(path), about.st_size, about.st_mtime_ns))
        found[check_name(name)] = rows
    if not any(found.values()):
        raise KeifuError("there is nothing to tokenise")
    return found


def units(found: Listed, encoding: Encoding) -> tuple[Unit, ...]:
    """The files divided: about 64 units, of 1 to 64 MB where files can be divided."""
    total = sum(size for rows in found.values() for _, size, _ in rows)
    size = min(_MOST, max(_LEAST, -(-total // _UNITS)))
    made: list[Unit] = []
    for source, rows in found.items():
        parts: list[Part] = []
        held = 0
        for path, bytes_, _ in rows:
            for part, weight in _parts(path, bytes_, size, encoding):
                parts.append(part)
                held += weight
                if held >= size:
                    made.append(Unit(source, tuple(parts)))
                    parts, held = [], 0
        if parts:
            made.append(Unit(source, tuple(parts)))
    return tuple(made)


def _parts(path: str, size: int, most: int, encoding: Encoding) -> Iterator[tuple[Part, int]]:
    """A file in parts of `most` bytes, if it is one of lines; whole if it is not."""
    if size <= most or not _divisible(path, encoding):
        yield Part(path), size
        return
    for start in range(0, size, most):
        yield Part(path, start, min(size, start + most)), min(size, start + most) - start


def _divisible(path: str, encoding: Encoding) -> bool:
    return path.lower().endswith((".jsonl", ".ndjson")) or (
        encoding.unit == "line" and kind(Path(path)) == ".txt" and path.lower().endswith(".txt")
    )


def read(unit: Unit, encoding: Encoding, bad: Bad) -> Iterator[Document]:
    """The documents of a unit, in order."""
    for part in unit.parts:
        if part.stop is None:
            yield from documents(part.path, bad, encoding.reading())
        else:
            yield from _lines(part, part.stop, encoding, bad)


def _lines(part: Part, stop: int, encoding: Encoding, bad: Bad) -> Iterator[Document]:
    """The lines that begin in a part of a file."""
    json_lines = not part.path.lower().endswith(".txt")
    with open(part.path, "rb") as file:
        if part.start:
            file.seek(part.start - 1)
            _line(file.readline(LONGEST + 1), part.path, part.start)
        while (at := file.tell()) < stop:
            line = _line(file.readline(LONGEST + 1), part.path, at)
            if at == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line:
                return
            if line.isspace():
                continue
            place = f"{part.path} at byte {at}"
            row, fault = parsed(line) if json_lines else _text(line)
            if row is None:
                bad(place, fault)
                continue
            document, fault = as_document(Record(row, place), encoding.column)
            if document is None:
                bad(place, fault)
            else:
                yield document


def _line(line: bytes, path: str, at: int) -> bytes:
    if len(line) > LONGEST:
        raise FormatError(f"{path} at byte {at}: a line of more than {LONGEST >> 20} MB")
    return line


def _text(line: bytes) -> tuple[Mapping[str, Any] | None, str]:
    if b"\0" in line:
        return None, "a zero byte: this is no text"
    try:
        return {"text": line.decode().rstrip("\r\n")}, ""
    except UnicodeDecodeError as broken:
        return None, f"no UTF-8 text: byte {broken.start + 1} of the line"
