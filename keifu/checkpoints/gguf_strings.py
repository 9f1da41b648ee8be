"""Arrays of strings in a GGUF header: checked and decoded many at a time.

A string is its length (u64) and its bytes, so where one begins follows from the one before. A
vocabulary and its merges are 100,000 of them, and a loop over those is most of the time that
opening a model takes (30 ms; this takes 3). In a window of the file every string shorter than
256 bytes begins where seven zero bytes follow one byte; if those places are a chain, each ending
where the next begins, then by induction they are exactly the strings. Where the chain breaks (a
long or an empty string, a zero byte in one) a plain loop goes on.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW = 1 << 18
"""Bytes looked at together."""
FEW = 64
"""Fewer strings than this are not worth a window."""
_LENGTH = struct.Struct("<Q")


class Truncated(Exception):
    """A string, of this index in its array, ends beyond the file."""


def find(data: Any, size: int, at: int, count: int) -> tuple[NDArray[np.int64], int]:
    """Where each of `count` strings begins (its length), from `at` on, and where the last ends."""
    whole = np.frombuffer(data, np.uint8)
    found: list[NDArray[np.int64]] = []
    left, patience = count, 64  # hostile strings break every chain: stop looking for them
    while left:
        starts = _chain(whole[at : at + WINDOW])[:left] if patience and left >= FEW else _NONE
        if len(starts) >= FEW:
            starts = starts + at
            at = int(starts[-1]) + 8 + int(whole[starts[-1]])
        else:
            patience -= patience > 0
            steps = min(left, FEW) if patience else left
            starts, at = _walk(data, size, at, steps, count - left)
        found.append(starts)
        left -= len(starts)
        if at > size:
            raise Truncated(count - left - 1)
    return np.concatenate(found) if found else _NONE, at


def _chain(window: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Strings shorter than 256 bytes that follow each other from the window's first byte on."""
    zero = window == 0
    two = zero[:-1] & zero[1:]
    four = two[:-2] & two[2:]
    seven = four[:-3] & four[3:]
    starts = np.flatnonzero(seven[1:])
    if not len(starts) or starts[0]:
        return _NONE
    breaks = np.flatnonzero(starts[:-1] + 8 + window[starts[:-1]] != starts[1:])
    return starts[: breaks[0] + 1] if len(breaks) else starts


def _walk(data: Any, size: int, at: int, count: int, first: int) -> tuple[NDArray[np.int64], int]:
    """The same by a loop, for strings of any length; `first` is the index of the first."""
    unpack, starts = _LENGTH.unpack_from, []
    for i in range(count):
        if at > size - 8:
            raise Truncated(first + i)
        starts.append(at)
        (length,) = unpack(data, at)
        at += 8 + length
    return np.array(starts, np.int64), at


def decode(data: Any, size: int, at: int, count: int) -> tuple[list[str | bytes], int]:
    """`count` strings from `at` on (those that are not UTF-8 as bytes), and where they end."""
    starts, end = find(data, size, at, count)
    if not count:
        return [], end
    places = starts - at
    body = np.frombuffer(data, np.uint8, end - at, at).copy()
    keep = np.ones(len(body), bool)
    for i in range(1, 8):
        keep[places + i] = False
    body[places] = 0
    text = body[keep].tobytes()  # a zero byte in place of each length
    if text.count(0) == count:
        try:
            return list(text[1:].decode().split("\0")), end
        except UnicodeDecodeError:
            pass
    ends = [*starts[1:].tolist(), end]
    return [_text(data[a + 8 : b]) for a, b in zip(starts.tolist(), ends, strict=True)], end


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


_NONE: NDArray[np.int64] = np.empty(0, np.int64)
