"""Reading data: files, folders and hub data sets as streams of rows and of documents."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from keifu.core.errors import FormatError, nearest, unknown
from keifu.data.bad import Bad
from keifu.data.document import Document, Record
from keifu.data.files import LONGEST, kind, lines, opened
from keifu.data.json_rows import json_lines, json_values
from keifu.data.sources import Source, find
from keifu.data.table_rows import arrow_rows, csv_rows, parquet_rows

Unit = Literal["file", "line", "paragraph"]
TEXTS = (
    *(".txt", ".md", ".rst", ".text", ".tex", ".html", ".py", ".c", ".h", ".cpp", ".cc", ".js"),
    *(".ts", ".java", ".go", ".rs", ".rb", ".sh", ".sql", ".el", ".lua", ".r", ".jl", ".hs", ""),
)
"""Suffixes of text: prose and source code."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What of a source is read, and as what."""

    split: str | None = None
    """Split of a data set's folder (default: train where there are several, else all files)"""
    column: str = "text"
    """Column that holds the text of a document"""
    unit: Unit = "file"
    """What one document of a text file is: the file, a line, or a paragraph"""
    offline: bool = False
    """Whether hub data sets come from the cache alone"""


def _tsv(path: Path, bad: Bad) -> Iterator[Record]:
    return csv_rows(path, bad, separator="\t")


_READERS: Mapping[str, Callable[[Path, Bad], Iterator[Record]]] = {
    ".jsonl": json_lines, ".ndjson": json_lines, ".json": json_values, ".csv": csv_rows,
    ".tsv": _tsv, ".parquet": parquet_rows, ".arrow": arrow_rows, ".feather": arrow_rows,
}  # fmt: skip


def records(
    source: str | Path, bad: Bad | None = None, options: Reading = Reading()
) -> Iterator[Record]:
    """The rows of a source in the order of its files; one of text has the column "text" alone.

    Args:
        source: a file, a folder, a hub data set ("owner/name"), or an entry of a
            `dataset_info.json` ("folder/dataset_info.json:name").
        bad: what happens to bad rows (default: the first is an error).

    Raises:
        FormatError: a bad row (file:line) that is not to be skipped, or a damaged file.
        KeifuError: the source is not there, or is of no known kind.
    """
    bad = Bad() if bad is None else bad
    for found in found_in(source, options):
        yield from rows_of(found, bad, options)


def documents(
    source: str | Path, bad: Bad | None = None, options: Reading = Reading()
) -> Iterator[Document]:
    """The texts of a source; other columns become `meta`, and an object `meta` (RedPajama's) too.

    As `records`; a row without the column, or whose text is no text, is bad.
    """
    bad = Bad() if bad is None else bad
    for found in found_in(source, options):
        column = found.columns.get("prompt", options.column)
        for record in rows_of(found, bad, options):
            document, fault = as_document(record, column)
            if document is None:
                bad(record.place, fault)
            else:
                yield document


def as_document(record: Record, column: str = "text") -> tuple[Document | None, str]:
    """A row as a document, or what is wrong with it."""
    fields = record.fields
    if column not in fields:
        names = sorted(map(str, fields))
        close = nearest(column, names) or names
        return None, f"no column {column!r}: it has {', '.join(close)[:200]}"
    text = fields[column]
    if not isinstance(text, str):
        return None, f"column {column!r} holds no text: {type(text).__name__}"
    meta = {name: value for name, value in fields.items() if name not in (column, "meta")}
    if "meta" in fields:
        meta |= _meta(fields["meta"])
    return Document(text, meta, record.place), ""


def files(source: str | Path, options: Reading = Reading()) -> list[Path]:
    """The files of a source, in the order in which they are read."""
    return [found.path for found in found_in(source, options)]


def formats() -> list[str]:
    """The suffixes of files with rows, without those of compression."""
    return list(_READERS)


def found_in(source: str | Path, options: Reading) -> Sequence[Source]:
    """The files of a source with what is known of each, in the order in which they are read."""
    texts = tuple(suffix for suffix in TEXTS if suffix)
    return find(source, tuple(_READERS), texts, split=options.split, offline=options.offline)


def rows_of(source: Source, bad: Bad, options: Reading) -> Iterator[Record]:
    """The rows of one file."""
    suffix = kind(source.path)
    reader = _READERS.get(suffix)
    if reader:
        rows = reader(source.path, bad)
    elif suffix in TEXTS:
        rows = _texts(source.path, bad, options.unit)
    else:
        raise unknown("reader of files that end in", suffix, [*formats(), ".txt"])
    for number, row in enumerate(rows):
        if source.rows is not None and number >= source.rows:
            return
        yield row


def _texts(path: Path, bad: Bad, unit: Unit) -> Iterator[Record]:
    """A text file as one document, or one a line, or one a paragraph (empty lines between)."""
    part: list[str] = []
    first, size = 1, 0
    with opened(path) as file:
        for number, raw in lines(file, path):
            text = _decoded(raw, f"{path}:{number}", bad)
            if text is None:
                continue
            if unit != "line" and (unit == "file" or not text.isspace()):
                size += len(raw)
                if size > LONGEST:
                    raise FormatError(
                        f"{path}: one document of more than {LONGEST >> 20} MB: read it with "
                        "the unit line or paragraph"
                    )
                first = first if part else number
                part.append(text)
            elif unit == "paragraph" and part:
                yield Record({"text": "".join(part).rstrip("\r\n")}, f"{path}:{first}")
                part, size = [], 0
            elif unit == "line" and not text.isspace():
                yield Record({"text": text.rstrip("\r\n")}, f"{path}:{number}")
    if part:
        text = "".join(part)
        yield Record({"text": text if unit == "file" else text.rstrip("\r\n")}, f"{path}:{first}")


def _decoded(raw: bytes, place: str, bad: Bad) -> str | None:
    if b"\0" in raw:
        bad(place, "a zero byte: this is no text")
        return None
    try:
        return raw.decode("utf-8-sig" if raw.startswith(b"\xef\xbb\xbf") else "utf-8")
    except UnicodeDecodeError as broken:
        bad(place, f"no UTF-8 text: byte {broken.start + 1} of the line")
        return None


def _meta(value: Any) -> dict[str, Any]:
    """RedPajama's `meta`: an object, or one written as JSON; anything else stays as it is."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {"meta": value}
    return dict(value) if isinstance(value, dict) else {"meta": value}
