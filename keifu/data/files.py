"""Data files as streams of bounded lines: plain, gzip or Zstandard."""

from __future__ import annotations

import gzip
import importlib
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from keifu.core.errors import FormatError, KeifuError

LONGEST = 64 * 2**20
"""Bytes of a line, a row or a text that is one document; more is refused before it is read."""
BOM = b"\xef\xbb\xbf"
COMPRESSED = (".gz", ".zst")


def kind(path: Path) -> str:
    """The suffix that says what a file holds, without the compression's: ".jsonl"."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return os.path.splitext(name)[1]


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed as they are read.

    Raises:
        FormatError: the compressed stream is damaged or cut off (while it is read, too).
        KeifuError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if path.name.lower().endswith(".gz"):
                yield cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=file)))
            elif path.name.lower().endswith(".zst"):
                stream = pyarrow(path).CompressedInputStream(file, "zstd")
                yield cast(BinaryIO, io.BufferedReader(stream, 1 << 20))
            else:
                yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as damaged:
        raise FormatError(f"{path} is damaged: {damaged}") from damaged
    except OSError as refused:
        if refused.strerror is None:  # pyarrow's, whose text says what the stream lacks
            raise FormatError(f"{path} is damaged: {str(refused)[:200]}") from refused
        raise KeifuError(f"cannot read {path}: {refused.strerror}") from refused


def lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers from 1, their ends included.

    Raises:
        FormatError: a line is longer than `LONGEST`.
    """
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise FormatError(f"{path}:{number}: a line of more than {LONGEST >> 20} MB")
        yield number, line


def pyarrow(path: Path, module: str = "pyarrow") -> Any:
    """The Arrow library, which reads Parquet, Arrow and Zstandard.

    Raises:
        KeifuError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name != "pyarrow":
            raise
        raise KeifuError(f"reading {path} needs pyarrow: pip install 'keifu[data]'") from None
