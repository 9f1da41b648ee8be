"""Word vectors as word2vec writes them, text and binary; GloVe's text, which has no header.

Text: a line `count width`, then a line a word: the word and its numbers, one space between. Binary:
the same header, then each word, a space and its little-endian float32 values (word2vec.c puts a
line feed after them, gensim none). The format holds no counts and no output matrix.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from keifu.core.atomic import written
from keifu.core.errors import FormatError, KeifuError, unknown

F32: TypeAlias = NDArray[np.float32]
ERRORS = ("strict", "replace", "ignore", "surrogateescape")
MOST_WIDE = 1 << 16
LONGEST = 1 << 12
"""Bytes of a word."""
_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is forgiven when vectors are read."""

    errors: Literal["strict", "replace", "ignore", "surrogateescape"] = "strict"
    """Words that are no UTF-8: an error, or as `bytes.decode` has it."""
    duplicates: Literal["refuse", "first"] = "refuse"
    """A word that comes twice: an error, or its first vector."""
    allow_nonfinite: bool = False
    """Take vectors with NaN or infinite numbers."""
    limit: int | None = None
    """Read the first so many words only."""

    def __post_init__(self) -> None:
        if self.errors not in ERRORS:
            raise unknown("way with words that are no UTF-8", self.errors, ERRORS)
        if self.limit is not None and self.limit < 1:
            raise KeifuError(f"limit={self.limit} leaves no words: use 1 or more")

    def decode(self, word: bytes, where: str) -> str:
        """A word as text."""
        try:
            return word.decode("utf-8", self.errors)
        except UnicodeDecodeError:
            raise FormatError(
                f"{where}: the word {word[:40]!r} is no UTF-8 (errors='replace', 'ignore' or "
                "'surrogateescape' takes it)"
            ) from None


@dataclass(frozen=True)
class WordVectors:
    """Words and their vectors (words, width) in the file's order."""

    words: list[str]
    matrix: F32


def is_binary(path: str | os.PathLike[str]) -> bool:
    """Whether a file of word vectors is binary: its first row is no line of numbers."""
    with open(path, "rb") as file:
        header = file.readline(LONGEST)
        if len(header.split()) != 2:
            return False
        width = _header(header, Path(path))[1]
        row = file.readline(LONGEST + 40 * width)
    try:
        return not [float(value) for value in row.split()[-width:]]
    except ValueError:
        return True


def read_word2vec(
    path: str | os.PathLike[str], *, binary: bool | None = None, reading: Reading = Reading()
) -> WordVectors:
    """All words and vectors of a file.

    Args:
        binary: None: what `is_binary` says.

    Raises:
        FormatError: one line that says which word or line is wrong, and how.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise FormatError(f"{path} is empty")
        with open(path, "rb") as file:
            if file.read(2) == b"\x1f\x8b":
                raise FormatError(f"{path} is compressed: unpack it first (gunzip)")
        binary = is_binary(path) if binary is None else binary
        with open(path, "rb") as file:
            return _read(file, path, binary, reading)
    except OSError as refused:
        raise KeifuError(f"cannot read {path}: {refused.strerror}") from refused


def _header(line: bytes, path: Path) -> tuple[int, int]:
    """Count and width."""
    parts = line.split()
    if len(parts) != 2 or not all(part.isdigit() and len(part) < 16 for part in parts):
        raise FormatError(f"{path}: the first line is {line[:60]!r}, not a count and a width")
    count, width = int(parts[0]), int(parts[1])
    if not count or not 0 < width <= MOST_WIDE:
        raise FormatError(f"{path}: {count} words of {width} numbers: expected 1 or more of both")
    return count, width


def _read(file: BinaryIO, path: Path, binary: bool, reading: Reading) -> WordVectors:
    size, first = path.stat().st_size, file.readline(LONGEST + 40 * MOST_WIDE)
    headless = not binary and len(first.split()) > 2
    if headless:  # GloVe
        file.seek(0)
        width = len(first.rstrip().split(b" ")) - 1
        count = sum(1 for line in file if line.strip())
        file.seek(0)
    else:
        count, width = _header(first, path)
    least = 4 * width + 1 if binary else 2 * width + 1
    if count * least > size:
        raise FormatError(
            f"{path}: the first line promises {count} words of {width} numbers, "
            f"but the file has {size} bytes: it was cut off, or the count is wrong"
        )
    wanted = min(count, reading.limit or count)
    made: Iterator[tuple[bytes, list[float] | F32]]
    if binary:
        made = _binary(file, path, wanted, width)
    else:
        made = _text(file, path, wanted, width, 1 if headless else 2)
    matrix = np.empty((wanted, width), np.float32)
    found: dict[str, int] = {}
    for number, (raw, values) in enumerate(made):
        word = reading.decode(raw, f"{path}, word {number + 1}")
        if word in found:
            if reading.duplicates == "refuse":
                raise FormatError(
                    f"{path}: the word {word!r} comes twice, as number {found[word] + 1} and "
                    f"{number + 1} (duplicates='first' keeps the first)"
                )
            continue
        matrix[len(found)] = np.asarray(values, np.float32)
        found[word] = len(found)
    if wanted == count and (rest := file.read(64).strip()):
        raise FormatError(f"{path}: more follows after the {count} words promised: {rest[:20]!r}")
    matrix = matrix[: len(found)]
    words = list(found)
    if not reading.allow_nonfinite:
        refuse_nonfinite(matrix, words, str(path))
    return WordVectors(words, matrix)


def refuse_nonfinite(matrix: F32, words: Sequence[str], where: str) -> None:
    """Raise FormatError for the first word whose vector is not finite."""
    for start in range(0, len(matrix), _ROWS):
        good = np.isfinite(matrix[start : start + _ROWS]).all(1)
        if not good.all():
            bad = start + int(good.argmin())
            name = repr(words[bad]) if bad < len(words) else f"row {bad}"
            raise FormatError(
                f"{where}: the vector of {name} has NaN or infinite numbers "
                "(--allow-nonfinite takes it)"
            )


def _text(
    file: BinaryIO, path: Path, count: int, width: int, line_number: int
) -> Iterator[tuple[bytes, list[float]]]:
    longest = LONGEST + 40 * width
    for number in range(count):
        where = f"{path}, line {number + line_number}"
        line = file.readline(longest)
        if not line:
            raise FormatError(f"{path} ends after {number} words of {count}: it was cut off")
        word, *values = line.rstrip(b" \r\n").split(b" ")
        if len(values) != width:
            raise FormatError(f"{where} has {len(values)} numbers after the word, not {width}")
        try:
            yield word, list(map(float, values))
        except ValueError:
            wrong = next(value for value in values if not _number(value))
            text = wrong[:40].decode("utf-8", "replace")
            raise FormatError(f"{where}: {text!r} is no number") from None


def _number(value: bytes) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _binary(file: BinaryIO, path: Path, count: int, width: int) -> Iterator[tuple[bytes, F32]]:
    at, size = file.tell(), 4 * width
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for number in range(count):
            space = data.find(b" ", at, at + LONGEST)
            if space < 0 and len(data) - at >= LONGEST:
                raise FormatError(f"{path}, word {number + 1}: no space within {LONGEST} bytes")
            if space < 0 or space + 1 + size > len(data):
                raise FormatError(f"{path} ends within word {number + 1} of {count}: cut off")
            word = data[at:space].lstrip(b"\n")
            yield word, np.frombuffer(data[space + 1 : space + 1 + size], "<f4")
            at = space + 1 + size
    file.seek(at)


def write_word2vec(
    path: str | os.PathLike[str], words: Sequence[str], matrix: F32, *, binary: bool = False
) -> None:
    """Write words and vectors (words, width); text has nine digits, which is every bit.

    Raises:
        KeifuError: a word that the format cannot hold (empty, white space), a full disk.
    """
    matrix = np.ascontiguousarray(matrix, np.float32)
    if matrix.shape[0] != len(words) or matrix.ndim != 2 or not len(words):
        raise KeifuError(f"{len(words)} words for a matrix of {matrix.shape}")
    for word in words:
        if not word or word.split() != [word]:
            raise KeifuError(f"the word {word!r} cannot be written: it has white space or nothing")
    with written(path) as file:
        file.write(f"{len(words)} {matrix.shape[1]}\n".encode())
        for word, row in zip(words, matrix, strict=True):
            name = word.encode("utf-8", "surrogateescape")
            if binary:
                file.write(name + b" " + row.astype("<f4").tobytes() + b"\n")
            else:
                numbers = " ".join(map("{:.9g}".format, row.tolist()))
                file.write(name + b" " + numbers.encode() + b"\n")
