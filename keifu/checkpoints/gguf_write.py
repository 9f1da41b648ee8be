"""Writing GGUF v3: as a stream, and in place only when it is whole."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from keifu.checkpoints.gguf_header import ALIGNMENT, DENSE, MAGIC, MAX_NAME, TYPE_IDS, shown
from keifu.checkpoints.gguf_metadata import ARRAY, BOOL, CODES, KINDS, STRING, Metadata, Value
from keifu.core.atomic import written
from keifu.core.errors import KeifuError
from keifu.nn.kernels.formats import Packed

_DENSE_NAMES = {dtype: name for name, dtype in DENSE.items()}
_NUMBERS = {name: number for number, name in enumerate(KINDS)}
_BLOCK = 1 << 24  # bytes copied together


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, Tensor | Packed]],
) -> None:
    """Write a model: keys in order, then tensors (dense as they are, packed as they are).

    `metadata` holds plain values (int is u32, or i32, i64, u64 where it does not fit; ints in a
    list are i32; float is f32), a `Value` where the kind matters, or another file's `Metadata`,
    whose kinds are kept. Each tensor is taken, written and forgotten, so an iterator may make
    them one at a time; their bytes go to a nameless file first, because the header, which comes
    before them, is known only at the end. Raises KeifuError for what the format cannot hold and
    for a full or read-only disk; then nothing is left, and an earlier file stays as it was.
    """
    target = Path(path)
    typed = metadata.typed() if isinstance(metadata, Metadata) else metadata
    keys = b"".join(_key(name, value) for name, value in typed.items())
    alignment = _alignment(typed.get("general.alignment", ALIGNMENT))
    with written(target) as file, tempfile.TemporaryFile(dir=target.parent) as data:
        infos = _spool(data, tensors, alignment)
        file.write(MAGIC + struct.pack("<IQQ", 3, len(infos), len(typed)) + keys)
        file.write(b"".join(infos))
        file.write(bytes(-file.tell() % alignment))
        data.seek(0)
        shutil.copyfileobj(data, file, _BLOCK)


def _spool(
    data: BinaryIO, tensors: Iterable[tuple[str, Tensor | Packed]], alignment: int
) -> list[bytes]:
    """Write the tensors' bytes, each padded to the alignment; their entries for the header."""
    infos: list[bytes] = []
    names: set[str] = set()
    for name, tensor in tensors:
        if name in names or not 0 < len(name.encode()) <= MAX_NAME:
            raise KeifuError(f"the tensor name {shown(name)} comes twice, is empty or too long")
        names.add(name)
        if isinstance(tensor, Packed):
            kind, raw = tensor.format.name, tensor.data
        else:
            kind, raw = _DENSE_NAMES.get(tensor.dtype, ""), tensor.detach()
        if not kind or len(tensor.shape) > 4 or 0 in tensor.shape:
            raise KeifuError(
                f"GGUF cannot hold {shown(name)}, {kind or raw.dtype} {list(tensor.shape)}: "
                f"up to four dimensions of {', '.join(DENSE)} or a packed format, none empty"
            )
        dims = tuple(tensor.shape)[::-1]
        place = struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, TYPE_IDS[kind], data.tell())
        infos.append(_string(name) + place)
        flat = raw.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(flat), _BLOCK):
            data.write(flat[start : start + _BLOCK])
        data.write(bytes(-len(flat) % alignment))
    return infos


def _alignment(value: Any) -> int:
    alignment = value.value if isinstance(value, Value) else value
    if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise KeifuError(f"general.alignment is {alignment!r}: use a power of two from 8 to 2^20")
    return alignment


def _string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _key(name: str, value: Any) -> bytes:
    """One key: name, kind, value."""
    if not 0 < len(name.encode()) <= MAX_NAME:
        raise KeifuError(f"the key {shown(name)} is empty or longer than {MAX_NAME} bytes")
    plain = value.value if isinstance(value, Value) else value
    kind = value.kind if isinstance(value, Value) else _guess(name, value)
    if kind not in _NUMBERS or kind == "array":
        raise KeifuError(f"{name}: {kind!r} is no kind of value; known: {', '.join(KINDS)}")
    number = ARRAY if isinstance(plain, list | tuple) else _NUMBERS[kind]
    try:
        return _string(name) + struct.pack("<I", number) + _value(_NUMBERS[kind], plain)
    except (struct.error, TypeError, AttributeError, OverflowError, ValueError) as bad:
        raise KeifuError(f"{name}: {plain!r:.80} is not {kind}: {bad}") from bad


def _value(kind: int, value: Any) -> bytes:
    """A value's bytes; of a list its element kind and count first."""
    code = "" if kind == STRING else "?" if kind == BOOL else CODES[kind].format[-1]
    if not isinstance(value, list | tuple):
        return struct.pack(f"<{code}", value) if code else _string(value)
    nested = bool(value) and isinstance(value[0], list | tuple)
    head = struct.pack("<IQ", ARRAY if nested else kind, len(value))
    if nested:
        return head + b"".join(_value(kind, item) for item in value)
    if code:
        return head + struct.pack(f"<{len(value)}{code}", *value)
    return head + b"".join(map(_string, value))


def _guess(name: str, value: Any) -> str:
    """The kind that readers expect of a plain value."""
    listed = isinstance(value, list | tuple)
    items = list(value) if listed else [value]
    while items and isinstance(items[0], list | tuple):
        items = [item for row in items for item in row]
    kinds = {type(item) for item in items}
    if not kinds:
        raise KeifuError(f"{name}: an empty list has no kind: write Value('i32', [])")
    if kinds == {bool}:
        return "bool"
    if kinds == {int}:
        order = ("i32", "i64", "u64") if listed else ("u32", "i32", "u64", "i64")
        low, high = min(items), max(items)
        return next((k for k in order if _fits(k, low) and _fits(k, high)), "i64")
    if kinds <= {int, float}:
        return "f32"
    if kinds <= {str, bytes}:
        return "string"
    found = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise KeifuError(f"{name}: GGUF has no kind for {found}")


def _fits(kind: str, value: int) -> bool:
    low = 0 if kind[0] == "u" else -(1 << (int(kind[1:]) - 1))
    return low <= value < low + (1 << int(kind[1:]))
