"""The keys of a GGUF file as a mapping: plain Python values, arrays decoded when asked for."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from keifu.checkpoints.gguf_strings import decode

KINDS = (
    *("u8", "i8", "u16", "i16", "u32", "i32", "f32"),
    *("bool", "string", "array", "u64", "i64", "f64"),
)
"""Kinds of value; the index is the number in the file."""
BOOL, STRING, ARRAY = 7, 8, 9
CODES = {
    number: struct.Struct(f"<{code}")
    for number, code in {
        **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B"},
        **{10: "Q", 11: "q", 12: "d"},
    }.items()
}
"""How each kind of number is stored."""


@dataclass(frozen=True)
class Array:
    """An array whose place in the file was checked: element kind, count, first element."""

    kind: int
    count: int
    at: int


@dataclass(frozen=True)
class Value:
    """A value with the kind it has (or is to have) in a file: `Value("u64", 3)`.

    A list is an array, and `kind` the kind of its elements, or of theirs if they are lists.
    """

    kind: str
    value: Any


class Metadata(Mapping[str, Any]):
    """Keys and values: int, float, bool, str, and lists of these.

    In a list of strings one that is not UTF-8 (vocabularies have such tokens) is `bytes`. Arrays
    are decoded from the mapped file at their first use and then kept.
    """

    def __init__(self, data: Any, entries: dict[str, tuple[int, Any]]) -> None:
        self._data, self._entries = data, entries
        self._lists: dict[str, list[Any]] = {}

    def __getitem__(self, key: str) -> Any:
        value = self._entries[key][1]
        if not isinstance(value, Array):
            return value
        if key not in self._lists:
            self._lists[key] = _decode(self._data, value)[0]
        return self._lists[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __repr__(self) -> str:
        return f"Metadata({len(self)} keys: {', '.join(list(self)[:8])}, ...)"

    def kind(self, key: str) -> str:
        """The kind of a value in the file: "u32"; of an array "array"."""
        return KINDS[self._entries[key][0]]

    def typed(self) -> dict[str, Value]:
        """Every value with its kind in the file: what to write so that the same is read back."""
        return {key: Value(self._leaf(key), self[key]) for key in self}

    def _leaf(self, key: str) -> str:
        """The kind of a value, or of the innermost elements of an array (any, if it has none)."""
        kind, value = self._entries[key]
        while kind == ARRAY:
            kind = value.kind
            if kind == ARRAY and not value.count:
                kind = 0
            elif kind == ARRAY:
                element, count = struct.unpack_from("<IQ", self._data, value.at)
                value = Array(element, count, value.at + 12)
        return KINDS[kind]


def _decode(data: Any, array: Array) -> tuple[list[Any], int]:
    """An array's elements and where it ends."""
    at = array.at
    if array.kind == STRING:
        return decode(data, len(data), at, array.count)
    if array.kind == ARRAY:
        rows = []
        for _ in range(array.count):
            kind, count = struct.unpack_from("<IQ", data, at)
            row, at = _decode(data, Array(kind, count, at + 12))
            rows.append(row)
        return rows, at
    code = CODES[array.kind]
    values = list(struct.unpack_from(f"<{array.count}{code.format[-1]}", data, at))
    if array.kind == BOOL:
        values = [bool(value) for value in values]
    return values, at + array.count * code.size
