"""The header of a GGUF file (v2, v3), read as hostile input.

The format (ggml's docs/gguf.md): "GGUF", version u32, tensor count u64, key count u64; keys (name,
kind u32, value); tensors (name, dimension count u32, dimensions u64 innermost first, type u32,
offset u64 into the data); padding to the alignment; data. All is little-endian. Every count is
checked against the bytes that are left before anything is looped over or allocated for it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from typing import Any

import torch

from keifu.checkpoints.gguf_metadata import ARRAY, BOOL, CODES, KINDS, STRING, Array, Metadata
from keifu.checkpoints.gguf_strings import Truncated, find
from keifu.core.errors import FormatError
from keifu.nn.kernels.formats import FORMATS

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
"""Where tensors begin unless `general.alignment` says otherwise."""
DENSE = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f64": torch.float64,
    "i8": torch.int8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
}
TYPE_IDS = {
    **{"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q2_k": 10},
    **{"q3_k": 11, "q4_k": 12, "q5_k": 13, "q6_k": 14, "iq4_nl": 20, "iq4_xs": 23, "i8": 24},
    **{"i16": 25, "i32": 26, "i64": 27, "f64": 28, "bf16": 30, "mxfp4": 39},
}
"""ggml's number of each type that we read."""
TYPES = {number: name for name, number in TYPE_IDS.items()}
UNREAD = {
    **{9: "q8_1", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s"},
    **{21: "iq3_s", 22: "iq2_s", 29: "iq1_m", 34: "tq1_0", 35: "tq2_0", 40: "nvfp4", 41: "q1_0"},
}
"""Types that exist but are not read: named in the error."""
MAX_NAME = 65535
"""The format's own limit for a key; no real tensor name comes near it."""
MAX_DEPTH = 4
"""Arrays in arrays; no known file nests them at all."""
MAX_ITEMS = 4_000_000
"""Strings, arrays, keys and tensors of one header: ten of the largest vocabularies, half a second.
"""


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor."""

    name: str
    shape: tuple[int, ...]
    """Outermost dimension first, as in torch."""
    format: str
    """A packed format ("q4_1") or a dense type ("f32")."""
    offset: int
    """First byte, from the start of its file."""
    nbytes: int
    part: int = 0
    """Which file of a split model."""


@dataclass(frozen=True)
class Header:
    """A checked header."""

    version: int
    metadata: Metadata
    tensors: dict[str, TensorInfo]


def shown(name: str) -> str:
    """A name from a file as an error may print it."""
    return repr(name if len(name) <= 80 else f"{name[:80]}...")


class _Cursor:
    """A position in the header; every step is checked against the end of the file."""

    def __init__(self, data: Any, size: int, path: str) -> None:
        self.data, self.size, self.path = data, size, path
        self.at = self.items = 0

    def error(self, text: str, at: int | None = None) -> FormatError:
        return FormatError(f"{self.path}: offset {self.at if at is None else at}: {text}")

    def need(self, count: int, each: int, what: str) -> None:
        """Refuse unless `count` things of at least `each` bytes can still follow."""
        left = self.size - self.at
        if count * each > left:
            raise self.error(f"{what} needs {count * each} bytes, {left} are left: truncated")

    def spend(self, count: int, what: str) -> None:
        """Count what takes a step of Python each."""
        self.items += count
        if self.items > MAX_ITEMS:
            raise self.error(f"{what}: more than {MAX_ITEMS} strings, arrays, keys and tensors")

    def number(self, kind: int, what: str) -> Any:
        code = CODES[kind]
        self.need(1, code.size, what)
        (value,) = code.unpack_from(self.data, self.at)
        self.at += code.size
        return value

    def u32(self, what: str) -> int:
        return int(self.number(4, what))

    def u64(self, what: str) -> int:
        return int(self.number(10, what))

    def string(self, what: str, limit: int | None = None) -> str:
        """A length and that many bytes of UTF-8."""
        start, length = self.at, self.u64(f"the length of {what}")
        if limit is not None and length > limit:
            raise self.error(f"{what} has {length} bytes, at most {limit} are allowed", start)
        self.need(length, 1, what)
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as bad:
            raise self.error(f"{what} is not UTF-8 ({bad.reason})", start) from None

    def array(self, what: str, depth: int = 1) -> Array:
        """Pass over an array (element kind, count, elements) that is wholly in the file."""
        if depth > MAX_DEPTH:
            raise self.error(f"{what}: arrays nested more than {MAX_DEPTH} deep")
        start, kind = self.at, self.u32(f"the element kind of {what}")
        count = self.u64(f"the length of {what}")
        if kind in CODES:
            self.need(count, CODES[kind].size, f"{what}, {count} elements,")
            end = self.at + count * CODES[kind].size
            if kind == BOOL and self.data[self.at : end].strip(b"\0\1"):
                raise self.error(f"{what} has a bool that is neither 0 nor 1")
            self.at = end
        elif kind in (STRING, ARRAY):
            self.need(count, 8 if kind == STRING else 12, f"{what}, {count} elements,")
            self.spend(count, what)
            if kind == STRING:
                try:
                    _, self.at = find(self.data, self.size, self.at, count)
                except Truncated as bad:
                    raise self.error(f"string {bad} of {what} ends beyond the file") from None
            else:
                for _ in range(count):
                    self.array(what, depth + 1)
        else:
            raise self.error(f"{what} has elements of the unknown kind {kind}", start)
        return Array(kind, count, start + 12)


def parse_header(data: Any, size: int, path: str, part: int = 0) -> Header:
    """Read and check the header of a file of `size` bytes (a bytes or mmap object), of that part.

    Raises FormatError naming the file, the offset and the key or tensor.
    """
    cursor = _Cursor(data, size, path)
    version = _version(cursor)
    tensor_count, key_count = cursor.u64("the tensor count"), cursor.u64("the key count")
    cursor.need(tensor_count, 24, f"{tensor_count} tensors")
    cursor.need(key_count, 13, f"{key_count} keys")
    cursor.spend(tensor_count + key_count, f"{tensor_count} tensors and {key_count} keys")
    metadata = _metadata(cursor, key_count)
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        found = alignment if type(alignment) is int else type(alignment).__name__
        raise cursor.error(f"general.alignment is {found}, not a power of two")
    infos: dict[str, TensorInfo] = {}
    for _ in range(tensor_count):
        start, info = cursor.at, _tensor(cursor)
        if info.name in infos:
            raise cursor.error(f"the tensor {shown(info.name)} comes twice", start)
        infos[info.name] = info
    _check_places(cursor, infos, alignment)
    base = _aligned(cursor.at, alignment)
    tensors = {n: replace(i, offset=base + i.offset, part=part) for n, i in infos.items()}
    return Header(version, metadata, tensors)


def _version(cursor: _Cursor) -> int:
    """Magic and version."""
    cursor.need(24, 1, "a GGUF header")
    if (magic := cursor.data[:4]) != MAGIC:
        raise cursor.error(f"not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
    cursor.at = 4
    version = cursor.u32("the version")
    if version & 0xFFFF == 0 and version:
        raise cursor.error("a big-endian GGUF file; only little-endian ones are read", 4)
    if version not in VERSIONS:
        raise cursor.error(f"GGUF version {version}; versions 2 and 3 are read", 4)
    return version


def _metadata(cursor: _Cursor, count: int) -> Metadata:
    """The keys; arrays stay in the file until they are asked for."""
    entries: dict[str, tuple[int, Any]] = {}
    for i in range(count):
        start, key = cursor.at, cursor.string(f"key {i}", MAX_NAME)
        if not key or key in entries:
            wrong = f"comes twice: {shown(key)}" if key else "has no name"
            raise cursor.error(f"key {i} of {count} {wrong}", start)
        what = f"key {shown(key)}"
        kind = cursor.u32(f"the kind of {what}")
        value: Any
        if kind == STRING:
            value = cursor.string(what)
        elif kind == ARRAY:
            value = cursor.array(what)
        elif kind in CODES:
            value = cursor.number(kind, what)
            if kind == BOOL:
                if value > 1:
                    raise cursor.error(f"{what} is a bool of value {value}, neither 0 nor 1")
                value = bool(value)
        else:
            raise cursor.error(f"{what} has the unknown kind {kind}; {len(KINDS)} are known")
        entries[key] = (kind, value)
    return Metadata(cursor.data, entries)


def _tensor(cursor: _Cursor) -> TensorInfo:
    """One tensor's entry; its offset is still relative to the data."""
    name = cursor.string("a tensor name", MAX_NAME)
    what = f"tensor {shown(name)}"
    rank = cursor.u32(f"the dimension count of {what}")
    if not name or rank > 4:
        raise cursor.error(f"{what} has {rank} dimensions" if name else "a tensor has no name")
    cursor.need(rank, 8, f"the dimensions of {what}")
    dims = struct.unpack_from(f"<{rank}Q", cursor.data, cursor.at)
    cursor.at += 8 * rank
    number, offset = cursor.u32(f"the type of {what}"), cursor.u64(f"the offset of {what}")
    if number not in TYPES:
        name = UNREAD.get(number, "unknown")
        raise cursor.error(
            f"{what} has the type {number} ({name}), which is not read; "
            f"those read: {', '.join(TYPE_IDS)}"
        )
    count, row = math.prod(dims), dims[0] if dims else 1
    if not count:
        raise cursor.error(f"{what} is empty: dimensions {dims}")
    packed = FORMATS.get(TYPES[number])
    if packed and row % packed.block:
        raise cursor.error(f"{what}: rows of {row} are not blocks of {packed.block} {packed.name}")
    size = (
        count // packed.block * packed.nbytes if packed else count * DENSE[TYPES[number]].itemsize
    )
    if size > cursor.size:
        raise cursor.error(f"{what}, dimensions {dims}, takes {size} bytes, more than the file")
    return TensorInfo(name, dims[::-1], TYPES[number], offset, size)


def _aligned(at: int, alignment: int) -> int:
    """The next multiple of the alignment."""
    return -(-at // alignment) * alignment


def _check_places(cursor: _Cursor, infos: dict[str, TensorInfo], alignment: int) -> None:
    """Refuse tensors that are misaligned, reach beyond the file or lie in one another."""
    base = end = _aligned(cursor.at, alignment)
    before = "the header"
    for info in sorted(infos.values(), key=lambda info: info.offset):
        what = f"tensor {shown(info.name)}"
        start = base + info.offset
        if info.offset % alignment:
            raise cursor.error(f"{what} is misaligned: {alignment} does not divide {info.offset}")
        if start + info.nbytes > cursor.size:
            raise cursor.error(
                f"{what} ends at byte {start + info.nbytes}, the file at {cursor.size}: truncated"
            )
        if start < end:
            raise cursor.error(f"{what} begins at byte {start}, inside {before}, which ends {end}")
        end, before = start + info.nbytes, what
