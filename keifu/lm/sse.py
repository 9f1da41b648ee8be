"""Server-sent events from bytes, in any split and bounded (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from keifu.lm.errors import RemoteError

MAX_EVENT = 8 << 20
"""Most bytes of one event, and so of one line."""


class Event(NamedTuple):
    """One event: its type ("" unless named) and its data lines joined by newlines."""

    type: str
    data: str


class SSEParser:
    """Feed bytes as they come; get the events that they complete.

    Lines end with CR, LF or CRLF; comments, `id` and `retry` are skipped; an event that the end
    of the stream cuts off is dropped, as the standard says. Work is linear in the bytes.
    """

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self._max = max_event
        self._line = bytearray()
        self._size = 0
        self._after_cr = False
        self._first = True
        self._type = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that `chunk` completes."""
        if not chunk:
            return
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        lines = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        for index, part in enumerate(lines):
            self._size += len(part)
            if self._size > self._max:
                raise RemoteError(f"the server sent an event of more than {self._max} bytes")
            self._line += part
            if index < len(lines) - 1:
                line, self._line = bytes(self._line), bytearray()
                yield from self._end_line(line)

    def _end_line(self, line: bytes) -> Iterator[Event]:
        if self._first:
            line, self._first = line.removeprefix(b"\xef\xbb\xbf"), False
        if not line:
            if self._data:
                yield Event(self._type, "\n".join(self._data))
            self._type, self._data, self._size = "", [], 0
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        try:
            if name == b"data":
                self._data.append(value.decode())
            elif name == b"event":
                self._type = value.decode()
        except UnicodeDecodeError:
            raise RemoteError("the server sent an event that is not UTF-8") from None
        if not name:  # a comment: keep-alives must not add up to a huge event
            self._size -= len(line)
