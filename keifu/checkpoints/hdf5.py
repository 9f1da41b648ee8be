"""Tensors of an HDF5 file, read with h5py (`pip install keifu[elmo]`), and such a file written.

Only what holds its own numbers is taken: plain data sets of floating point, stored whole and
unfiltered in this very file. Links, external and virtual storage, compressed or unwritten data (a
small file that claims a large array) are refused before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keifu.core.atomic import written
from keifu.core.errors import FormatError, KeifuError

MOST = 4096
"""Data sets and groups of a file."""
DEEPEST = 8
DIMENSIONS = 4
_LONGEST = 512


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as absent:
        raise KeifuError("HDF5 files need h5py: pip install 'keifu[elmo]'") from absent
    return h5py


class HDF5Source:
    """The data sets of one file under their paths ("RNN_0/RNN/...")."""

    def __init__(self, path: Path) -> None:
        self.path, h5py = path, _h5py()
        try:
            self._file = h5py.File(path, "r")
        except OSError as wrong:
            raise FormatError(f"{path} is no HDF5 file: {str(wrong)[:200]}") from wrong
        try:
            self._sets = dict(self._walk(self._file, "", 0, [0]))
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as wrong:
            raise FormatError(f"{path} is damaged: {str(wrong)[:200]}") from wrong

    def _walk(self, group: Any, at: str, depth: int, seen: list[int]) -> Iterator[tuple[str, Any]]:
        h5py = _h5py()
        if depth > DEEPEST:
            raise FormatError(f"{self.path}: {at} is nested more than {DEEPEST} deep")
        for name in group:
            seen[0] += 1
            path = f"{at}{name}"
            if seen[0] > MOST or len(path) > _LONGEST:
                raise FormatError(f"{self.path} has more than {MOST} entries or too long names")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise FormatError(f"{self.path}: {path} is a link: copy what it points to")
            item = group[name]
            if isinstance(item, h5py.Group):
                yield from self._walk(item, f"{path}/", depth + 1, seen)
            elif isinstance(item, h5py.Dataset):
                yield path, self._checked(path, item)
            else:
                raise FormatError(f"{self.path}: {path} is neither a group nor a data set")

    def _checked(self, path: str, item: Any) -> Any:
        """A data set that is what its size says, or an error."""
        if item.dtype.kind != "f" or item.dtype.itemsize not in (2, 4, 8):
            raise FormatError(f"{self.path}: {path} has type {item.dtype}, not a floating one")
        if item.shape is None or len(item.shape) > DIMENSIONS or 0 in item.shape:
            raise FormatError(f"{self.path}: {path} has shape {item.shape}")
        if item.external is not None or item.is_virtual:
            raise FormatError(f"{self.path}: {path} keeps its numbers in another file")
        filtered = item.compression or item.shuffle or item.fletcher32 or item.scaleoffset
        if filtered or item.id.get_create_plist().get_nfilters():
            raise FormatError(f"{self.path}: {path} is compressed: h5repack -f NONE undoes it")
        held = item.id.get_storage_size()
        if held != item.nbytes or held > self.path.stat().st_size:
            raise FormatError(f"{self.path}: {path} holds {held} bytes of {item.nbytes}")
        return item

    def names(self) -> list[str]:
        """Every path."""
        return list(self._sets)

    def shape(self, name: str) -> tuple[int, ...]:
        """As the file says."""
        return tuple(int(n) for n in self._sets[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """The element type."""
        widths = {2: torch.float16, 4: torch.float32, 8: torch.float64}
        return widths[self._sets[name].dtype.itemsize]

    def read(self, name: str) -> Tensor:
        """The numbers, in this machine's byte order."""
        item = self._sets[name]
        try:
            values = item[...]
        except OSError as wrong:
            raise FormatError(f"{self.path}: {name} cannot be read: {str(wrong)[:200]}") from wrong
        return torch.from_numpy(values.astype(values.dtype.newbyteorder("=")).copy())


def write_hdf5(path: Path, tensors: Iterable[tuple[str, Tensor]] | Mapping[str, Tensor]) -> None:
    """A file with these data sets, float32, whole or not at all."""
    h5py = _h5py()
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    with written(path) as file, h5py.File(file.name, "w") as out:
        for name, value in pairs:
            out.create_dataset(name, data=value.detach().to(torch.float32).cpu().numpy())
