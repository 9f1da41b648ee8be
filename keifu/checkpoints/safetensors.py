"""Hugging Face weights: safetensors, one file or shards; read lazily, written as a stream.

The format (its own documentation, "Format"): 8 bytes little-endian header length, the header as a
JSON object from tensor name to dtype, shape and data_offsets, then the tensors' bytes without gap.
Every file is checked against that here, before the safetensors library maps it.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from keifu.checkpoints.download import check_room
from keifu.checkpoints.source import check_index, no_tensor, open_shards, parse_json, some
from keifu.core.errors import FormatError, KeifuError

if TYPE_CHECKING:
    from safetensors import safe_open

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_HEADER_BYTES = 100_000_000  # the library's own limit
_DIMS = 64
_SHARD_BYTES = 50_000_000_000  # transformers 5's max_shard_size
_BLOCK = 2**24  # bytes written together


@dataclass(frozen=True)
class Info:
    """What a header says of one tensor; offsets count from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked header: tensors in the order of the file, and the file's own metadata."""

    tensors: dict[str, Info]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check one file's header against its size. Raises FormatError; allocates little."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(8)
        if len(first) < 8:
            raise FormatError(f"{path}: {size} bytes are too few for a safetensors file")
        (length,) = struct.unpack("<Q", first)
        if not 2 <= length <= min(_HEADER_BYTES, size - 8):
            raise FormatError(
                f"{path}: the header is said to have {length} bytes, but the file has "
                f"{size - 8} after the length and at most {_HEADER_BYTES} are accepted"
            )
        text = file.read(length)
    if text[:1] != b"{":
        raise FormatError(f"{path}: the header at byte 8 does not begin with '{{'")
    return check_header(parse_json(text, f"the header of {path}"), size - 8 - length, path)


def check_header(said: Mapping[str, Any], size: int, path: Path) -> Header:
    """A parsed header as values, if it describes `size` bytes of data without gap or overlap."""
    metadata = said.get("__metadata__", {})
    if not isinstance(metadata, dict) or any(not isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{path}: __metadata__ is not an object of strings")
    infos = [(n, _info(n, i, path)) for n, i in said.items() if n != "__metadata__"]
    infos.sort(key=lambda pair: (pair[1].start, pair[1].end))
    at = 0
    for name, info in infos:
        if info.start != at:
            kind = "a hole" if info.start > at else "an overlap"
            raise FormatError(
                f"{path}: {name[:200]} begins at byte {info.start} of the data, not {at}: {kind}"
            )
        at = info.end
    if at != size:
        kind = "truncated" if at > size else "followed by bytes that belong to no tensor"
        raise FormatError(f"{path}: tensors take {at} bytes, the file holds {size}: it is {kind}")
    return Header(dict(infos), dict(metadata))


def _info(name: str, said: object, path: Path) -> Info:
    """One tensor's entry, if it is of the right form and its length fits its shape."""
    where = f"{path}: tensor {name[:200]!r}"
    if not isinstance(said, dict) or set(said) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: expected dtype, shape and data_offsets")
    code, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise FormatError(f"{where}: dtype {code!r:.80} is not one of {', '.join(DTYPES)}")
    if not _numbers(shape) or len(shape) > _DIMS:
        raise FormatError(f"{where}: {shape!r:.200} is no shape")
    if not _numbers(offsets) or len(offsets) != 2:
        raise FormatError(f"{where}: {offsets!r:.200} are no data_offsets")
    length = math.prod(shape) * DTYPES[code].itemsize
    if length >= 2**63 or length != offsets[1] - offsets[0]:
        raise FormatError(
            f"{where}: {code} {shape!r:.200} takes {length} bytes, data_offsets {offsets} do not"
        )
    return Info(DTYPES[code], tuple(shape), offsets[0], offsets[1])


def _numbers(value: object) -> bool:
    """Whether a value is a list of integers from 0 to 2^63 - 1 (True is not one)."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


class SafetensorsSource:
    """The tensors of a checkpoint folder, or of one .safetensors file: a `TensorSource`."""

    def __init__(self, path: Path, stem: str = "model") -> None:
        """Check every header (and the index); map nothing yet. Raises FormatError, KeifuError."""
        self.path = path
        files, weight_map = (
            ([path], None) if path.is_file() else open_shards(path, stem, "safetensors")
        )
        headers = {file: read_header(file) for file in files}
        self.metadata: dict[str, str] = {}
        self._where: dict[str, Path] = {}
        self._info: dict[str, Info] = {}
        for file, header in headers.items():
            if twice := header.tensors.keys() & self._info.keys():
                raise FormatError(f"{file}: {some(twice)} is in another shard too")
            self._where |= dict.fromkeys(header.tensors, file)
            self._info |= header.tensors
            self.metadata |= header.metadata
        if weight_map is not None:
            held = {file.name: list(header.tensors) for file, header in headers.items()}
            check_index(path / f"{stem}.safetensors.index.json", weight_map, held)
        self._open: dict[Path, safe_open] = {}

    def names(self) -> list[str]:
        """Every tensor's name: shards in order of their names, tensors in order of the file."""
        return list(self._info)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._of(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's element type."""
        return self._of(name).dtype

    def read(self, name: str) -> Tensor:
        """The tensor, as a view of the file's private pages."""
        from safetensors import SafetensorError, safe_open

        self._of(name)
        file = self._where[name]
        try:
            if file not in self._open:
                self._open[file] = safe_open(file, framework="pt")
            tensor: Tensor = self._open[file].get_tensor(name)  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError) as bad:  # the file changed after it was checked
            raise FormatError(f"{file}: {bad}") from bad
        return tensor

    def _of(self, name: str) -> Info:
        if name not in self._info:
            raise no_tensor(str(self.path), name, self._info)
        return self._info[name]


@dataclass(frozen=True)
class Planned:
    """A tensor to be written: what it will be, and how to make it when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        """Its length in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Planned:
        """A tensor that is there already."""
        return cls(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)


def write_safetensors(
    folder: Path,
    tensors: Iterable[Planned],
    *,
    max_shard_bytes: int = _SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
    stem: str = "model",
) -> list[Path]:
    """Write a folder's weights as transformers does; the files written, the index last.

    One file, or shards filled in the given order with an index; each tensor is made, written and
    forgotten, so the peak is one tensor. All files are complete under temporary names before the
    first takes its own, and weights left from an earlier save go last. A weight that two names
    share is to be given once. Raises KeifuError for a name twice or a full disk.
    """
    planned = list(tensors)
    if wrong := [p.name for p in planned if p.dtype not in _CODES]:
        raise KeifuError(f"safetensors has no element type for {some(wrong)}")
    names = {p.name for p in planned}
    if len(names) < len(planned) or "__metadata__" in names:
        raise KeifuError("a tensor is named twice (a shared one is saved once) or __metadata__")
    shards = _shards(planned, max_shard_bytes)
    count = len(shards)
    files = [f"{stem}-{k:05d}-of-{count:05d}.safetensors" for k in range(1, count + 1)]
    if count == 1:
        files = [f"{stem}.safetensors"]
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(p.bytes for p in planned)
    check_room(folder, total)
    made: dict[Path, Path] = {}
    try:
        for name, shard in zip(files, shards, strict=True):
            made[_temporary(folder / name)] = folder / name
            _write_file(_temporary(folder / name), shard, metadata or {"format": "pt"})
        if count > 1:
            index = folder / f"{stem}.safetensors.index.json"
            made[_temporary(index)] = index
            where = {p.name: name for name, s in zip(files, shards, strict=True) for p in s}
            text = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
            _write_bytes(_temporary(index), [json.dumps(text, indent=2).encode() + b"\n"])
        for temporary, path in made.items():
            os.replace(temporary, path)
    except OSError as refused:
        raise KeifuError(f"cannot write {folder}: {refused.strerror or refused}") from refused
    finally:
        for temporary in made:
            temporary.unlink(missing_ok=True)
    for old in _earlier(folder, stem):
        if old not in made.values():
            old.unlink()
    return list(made.values())


def _shards(planned: Sequence[Planned], limit: int) -> list[list[Planned]]:
    """Fill shards in order; a tensor larger than the limit has one to itself."""
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in planned:
        if shards[-1] and size + tensor.bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.bytes
    return shards


def _write_file(path: Path, shard: Sequence[Planned], metadata: Mapping[str, str]) -> None:
    """One safetensors file; wide elements come first, so that each tensor is aligned."""
    ordered = sorted(shard, key=lambda p: (-p.dtype.itemsize, p.name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for p in ordered:
        header[p.name] = {
            "dtype": _CODES[p.dtype],
            "shape": list(p.shape),
            "data_offsets": [at, at + p.bytes],
        }
        at += p.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    def pieces() -> Iterable[bytes | memoryview]:
        yield struct.pack("<Q", len(text)) + text
        for p in ordered:
            tensor = p.make()
            if tuple(tensor.shape) != p.shape or tensor.dtype != p.dtype:
                raise ValueError(f"{p.name} became {tensor.dtype} {list(tensor.shape)}, not {p}")
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            data = flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
            for start in range(0, len(data), _BLOCK):
                yield data[start : start + _BLOCK]

    _write_bytes(path, pieces())


def _write_bytes(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """A new file, on the disk when this returns."""
    with open(path, "wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _earlier(folder: Path, stem: str) -> list[Path]:
    """The weight files of this stem in a folder, of whatever save."""
    single = [folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"]
    return [p for p in single if p.exists()] + list(folder.glob(f"{stem}-*-of-*.safetensors"))
