"""Rows of tables: CSV and TSV, Parquet, Arrow's files and streams."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keifu.core.errors import FormatError, KeifuError
from keifu.data.bad import Bad
from keifu.data.document import Record
from keifu.data.files import BOM, LONGEST, lines, opened, pyarrow

_ROWS = 256
"""Rows of a table that are in memory as Python values at a time."""


def csv_rows(path: Path, bad: Bad, *, separator: str = ",") -> Iterator[Record]:
    """The rows under the header of a CSV file, all values as text."""
    csv.field_size_limit(LONGEST)
    with opened(path) as file:
        text = (line.removeprefix(BOM).decode() for _, line in lines(file, path))
        rows = csv.reader(text, delimiter=separator, strict=True)
        try:
            header = next(rows, [])
            if len(set(header)) != len(header):
                raise FormatError(f"{path}:1: a column's name comes twice: {', '.join(header)}")
            while True:
                place = f"{path}:{rows.line_num + 1}"
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as broken:
                    bad(place, f"bad CSV: {broken}")
                    continue
                if len(row) == len(header):
                    yield Record(dict(zip(header, row, strict=True)), place)
                elif row:
                    bad(place, f"{len(row)} values for {len(header)} columns")
        except UnicodeDecodeError:
            raise FormatError(f"{path}: no UTF-8 text after line {rows.line_num}") from None


def parquet_rows(path: Path, bad: Bad) -> Iterator[Record]:
    """The rows of a Parquet file, a few hundred at a time."""
    parquet, errors = pyarrow(path, "pyarrow.parquet"), pyarrow(path)
    try:
        with parquet.ParquetFile(path, memory_map=True) as file:
            yield from _batches(file.iter_batches(batch_size=_ROWS), path)
    except (errors.ArrowException, OSError) as damaged:
        raise _damaged(path, "Parquet", damaged) from damaged


def arrow_rows(path: Path, bad: Bad) -> Iterator[Record]:
    """The rows of an Arrow (Feather 2) file or stream, memory-mapped."""
    arrow = pyarrow(path)
    try:
        with arrow.memory_map(str(path)) as file:
            if file.read(6) == b"ARROW1":
                whole = arrow.ipc.open_file(file)
                batches = map(whole.get_batch, range(whole.num_record_batches))
                yield from _batches(batches, path)
            else:
                file.seek(0)
                yield from _batches(arrow.ipc.open_stream(file), path)
    except (arrow.ArrowException, OSError) as damaged:
        raise _damaged(path, "Arrow", damaged) from damaged


def _batches(batches: Any, path: Path) -> Iterator[Record]:
    number = 0
    for batch in batches:
        batch.validate()
        for first in range(0, batch.num_rows, _ROWS):
            try:
                rows = batch.slice(first, _ROWS).to_pylist()
            except UnicodeDecodeError:
                at = number + 1
                raise FormatError(f"{path}: rows from {at} hold what is no UTF-8 text") from None
            for row in rows:
                number += 1
                yield Record(row, f"{path}:{number}")


def _damaged(path: Path, format: str, error: Exception) -> KeifuError:
    if isinstance(error, OSError) and error.strerror:
        return KeifuError(f"cannot read {path}: {error.strerror}")
    said = " ".join(str(error).split())[:200]
    return FormatError(f"{path} is a damaged {format} file, or none: {said}")
