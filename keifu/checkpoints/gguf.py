"""GGUF files as checkpoints: metadata and tensors, mapped and not copied; split models joined."""

from __future__ import annotations

import mmap
import os
import platform
import re
import stat
import sys
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from keifu.checkpoints.gguf_header import DENSE, Header, TensorInfo, parse_header, shown
from keifu.checkpoints.gguf_metadata import Metadata, Value
from keifu.checkpoints.gguf_write import write_gguf
from keifu.checkpoints.source import no_tensor
from keifu.core.errors import FormatError, KeifuError
from keifu.nn.kernels.formats import FORMATS, Packed

__all__ = ["GGUFFile", "Metadata", "TensorInfo", "Value", "write_gguf"]

_SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
# Python's mmap has no name for it. Without it a private writable map of a file larger than memory
# and swap is refused, though nothing is ever written to it.
_NORESERVE = 0x4000 if platform.machine() in ("x86_64", "aarch64", "riscv64") else 0


class GGUFFile:
    """An open GGUF model: `metadata`, `tensors` (by name), `read`; a `TensorSource`.

    Of a split model name any part (`x-00001-of-00003.gguf`): the others must lie beside it, and
    the metadata is the first one's. Everything is checked when it opens; a damaged file is a
    FormatError that names the file, the offset and the key or tensor. Tensors are views of
    private pages of the mapped file: they may be written to (the file does not change), and
    outlive `close`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        parts = _open_parts(self.path)
        self._data = [data for data, _ in parts]
        self.metadata = parts[0][1].metadata
        self.tensors: dict[str, TensorInfo] = {}
        for _, header in parts:
            if twice := self.tensors.keys() & header.tensors.keys():
                raise FormatError(f"{self.path}: the tensor {shown(min(twice))} is in two parts")
            self.tensors |= header.tensors

    def names(self) -> list[str]:
        """Every tensor's name, in the order of the file."""
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, outermost dimension first."""
        return self._of(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's element type; a packed one decodes to float32."""
        return DENSE.get(self._of(name).format, torch.float32)

    def read(self, name: str) -> Tensor | Packed:
        """A dense tensor, or a packed one in its format; no byte is read or copied yet."""
        info = self._of(name)
        if not self._data:
            raise ValueError(f"{self.path} is closed")
        raw = self._data[info.part][info.offset : info.offset + info.nbytes]
        if packed := FORMATS.get(info.format):
            cols = info.shape[-1]
            return Packed(raw.view(*info.shape[:-1], packed.row_bytes(cols)), packed, cols)
        dtype = DENSE[info.format]
        if info.offset % dtype.itemsize:  # a file may ask for an alignment of 1 or 2
            raw = raw.clone()
        return raw.view(dtype).view(info.shape)

    def close(self) -> None:
        """Let go of the file; the pages stay mapped while a tensor or list still needs them."""
        self._data = []

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _of(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise no_tensor(str(self.path), name, self.tensors)
        return self.tensors[name]


def _map(path: Path, part: int) -> tuple[Tensor, Header]:
    """One file's bytes (size,) uint8, mapped privately, and its header."""
    try:
        with open(path, "rb", opener=_nonblocking) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FormatError(f"{path} is not a regular file")
            if status.st_size < 24:
                raise FormatError(f"{path}: offset 0: {status.st_size} bytes are no GGUF header")
            if sys.platform == "linux":
                pages = mmap.mmap(
                    file.fileno(),
                    status.st_size,
                    flags=mmap.MAP_PRIVATE | _NORESERVE,
                    prot=mmap.PROT_READ | mmap.PROT_WRITE,
                )
            else:
                pages = mmap.mmap(file.fileno(), status.st_size, access=mmap.ACCESS_COPY)
    except OSError as refused:
        raise KeifuError(f"cannot open {path}: {refused.strerror or refused}") from refused
    header = parse_header(pages, status.st_size, str(path), part)
    return torch.frombuffer(pages, dtype=torch.uint8), header


def _nonblocking(path: str, flags: int) -> int:
    """Open without waiting: a named pipe would wait for a writer for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _open_parts(path: Path) -> list[tuple[Tensor, Header]]:
    """The file, or all parts of the split model that it belongs to, in order."""
    opened = _map(path, 0)
    count = opened[1].metadata.get("split.count", 1)
    if count in (0, 1):
        return [opened]
    name = _SPLIT.fullmatch(path.name)
    if not name or type(count) is not int or int(name["count"]) != count:
        raise FormatError(
            f"{path}: split.count is {count!r:.80}, so its name must end in -00001-of-"
            f"{f'{count:05d}' if type(count) is int else 'N'}.gguf, beside the other parts"
        )
    parts = []
    for i in range(count):
        file = path.with_name(f"{name['stem']}-{i + 1:05d}-of-{count:05d}.gguf")
        if not file.exists():
            raise FormatError(f"{file} is missing: {path.name} is one of {count} parts")
        part = _map(file, i)
        said = [part[1].metadata.get(key) for key in ("split.no", "split.count")]
        if said != [i, count]:
            raise FormatError(
                f"{file}: split.no and split.count are {said!s:.80}, not {[i, count]}"
            )
        parts.append(part)
    total = parts[0][1].metadata.get("split.tensors.count")
    held = sum(len(header.tensors) for _, header in parts)
    if total not in (None, held):
        raise FormatError(f"{path}: split.tensors.count is {total!r:.80}, the parts hold {held}")
    return parts
