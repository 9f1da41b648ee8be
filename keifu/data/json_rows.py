"""Rows of JSON files: one object a line, or objects one after another or in an array."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from keifu.core.errors import FormatError
from keifu.data.bad import Bad
from keifu.data.document import Record
from keifu.data.files import BOM, LONGEST, lines, opened

_BLOCK = 1 << 20
_SPACE = re.compile(r"[\s,]*")


def json_lines(path: Path, bad: Bad) -> Iterator[Record]:
    """The objects of a .jsonl file; empty lines are left out."""
    with opened(path) as file:
        for number, line in lines(file, path):
            if number == 1:
                line = line.removeprefix(BOM)
            if line.isspace():
                continue
            place = f"{path}:{number}"
            row, fault = parsed(line)
            if row is None:
                bad(place, fault)
            else:
                yield Record(row, place)


def json_values(path: Path, bad: Bad) -> Iterator[Record]:
    """The objects of a .json file: an array, one object, or several; one in memory at a time.

    Where the text is broken nobody knows where the next object begins: the file ends there.
    """
    with opened(path) as file:
        yield from _values(file, path, bad)


def _values(file: BinaryIO, path: Path, bad: Bad) -> Iterator[Record]:
    reader, decoder = _Text(file), json.JSONDecoder(parse_constant=_refused)
    reader.skip()
    array = reader.buffer[reader.at : reader.at + 1] == "["
    reader.at += array
    while reader.skip():
        place = f"{path}:{reader.line()}"
        if array and reader.buffer[reader.at] == "]":
            return
        try:
            value = reader.value(decoder)
        except (ValueError, RecursionError) as broken:
            at = path if not isinstance(broken, json.JSONDecodeError) else place
            bad(f"{at}", f"bad JSON: {_said(broken)}, and no row after it can be found")
            return
        if isinstance(value, dict) and not _surrogate(value):
            yield Record(value, place)
        else:
            bad(place, _shape(value))
    if array:
        bad(str(path), "bad JSON: the array does not end")


class _Text:
    """A file's text from a place onward; what was read is let go."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.buffer, self.at, self.lines = file, "", 0, 1
        self.tail, self.ended = b"", False
        self.more(_BLOCK)
        self.buffer = self.buffer.removeprefix("\ufeff")

    def more(self, size: int) -> bool:
        """Read on; False at the end. UnicodeDecodeError (a ValueError) for what is no UTF-8."""
        if self.ended:
            return False
        raw = self.tail + self.file.read(size)
        self.ended = len(raw) == len(self.tail)
        cut = len(raw) if self.ended else max(raw.rfind(b"\n"), raw.rfind(b'"')) + 1
        self.tail = raw[cut:]
        self.lines += self.buffer.count("\n", 0, self.at)
        self.buffer, self.at = self.buffer[self.at :] + raw[:cut].decode(), 0
        return True

    def line(self) -> int:
        """The line of the place."""
        return self.lines + self.buffer.count("\n", 0, self.at)

    def skip(self) -> bool:
        """Pass over white space and commas; False if nothing follows."""
        while True:
            found = _SPACE.match(self.buffer, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.buffer):
                return True
            if not self.more(_BLOCK):
                return False

    def value(self, decoder: json.JSONDecoder) -> Any:
        """The next value; where it may be cut off, twice as much text is tried."""
        size = _BLOCK
        while True:
            try:
                value, end = decoder.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError:
                if len(self.buffer) - self.at > LONGEST:
                    raise FormatError(f"a row of more than {LONGEST >> 20} MB") from None
                if not self.more(size):
                    raise
                size *= 2
                continue
            if end < len(self.buffer) or not self.more(size):
                self.at = end
                return value


def parsed(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """A line's object, or what is wrong with it."""
    try:
        value = json.loads(line.decode(), parse_constant=_refused)
    except UnicodeDecodeError as broken:
        return None, f"no UTF-8 text: byte {broken.start + 1} of the line"
    except (ValueError, RecursionError) as broken:
        return None, f"bad JSON: {_said(broken)}"
    if not isinstance(value, dict):
        return None, _shape(value)
    if b"\\ud" in line.lower() and _surrogate(value):
        return None, _shape(value)
    return value, ""


def _said(broken: Exception) -> str:
    if isinstance(broken, json.JSONDecodeError):
        return f"{broken.msg} at column {broken.colno}"
    return "nested too deep" if isinstance(broken, RecursionError) else str(broken)[:100]


def _shape(value: Any) -> str:
    if isinstance(value, dict):
        return "half of a surrogate pair, which is no text"
    return f"a row must be an object: {type(value).__name__} found"


def _surrogate(value: dict[str, Any]) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
