"""What every checkpoint file is to a loader: named tensors, read one at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from keifu.core.errors import FormatError, KeifuError, nearest

if TYPE_CHECKING:
    import torch

    from keifu.checkpoints.names import Value

_INDEX_BYTES = 64 * 2**20
_SLICE = 2**22  # elements looked at together
_NONFINITE = (
    "{} has NaN or infinite elements: the checkpoint is damaged (allow_nonfinite=True loads it all "
    "the same, keifu convert --allow-nonfinite rewrites it)"
)


class TensorSource(Protocol):
    """The tensors of one checkpoint. Nothing is read before it is asked for, nothing is copied.

    What `read` returns is a view of the file's pages (private: writing to it does not touch the
    file). A name that is not there is a KeyError: a bug of the caller, who has `names`.
    """

    def names(self) -> list[str]:
        """Every tensor's name, in the order of the file."""

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the file's header alone."""

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's element type (of a packed one, what it unpacks to)."""

    def read(self, name: str) -> Value:
        """The tensor."""


def open_shards(folder: Path, stem: str, ending: str) -> tuple[list[Path], dict[str, str] | None]:
    """The weight files of a folder: `stem.ending`, or the shards of `stem.ending.index.json`.

    Returns the files and, for shards, the index's map from tensor to file name. Raises
    FormatError for an index that is damaged, names a file outside the folder or one that is
    missing, and KeifuError where there are no weights.
    """
    if (folder / f"{stem}.{ending}").exists():
        return [inside(folder, f"{stem}.{ending}")], None
    index = folder / f"{stem}.{ending}.index.json"
    if not index.exists():
        there = sorted(path.name for path in folder.iterdir())[:20]
        raise KeifuError(
            f"{folder} has neither {stem}.{ending} nor {index.name}; it has {', '.join(there)}"
        )
    said = read_json(inside(folder, index.name), _INDEX_BYTES)
    weight_map = said.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{index}: weight_map is missing or empty")
    named = weight_map.values()
    wrong = {repr(v)[:99] for v in named if not (_basename(v) and v.endswith(f".{ending}"))}
    if wrong:
        raise FormatError(
            f"{index}: {some(wrong)} is no plain name of a .{ending} file of the folder"
        )
    missing = {name for name in set(weight_map.values()) if not (folder / name).exists()}
    if missing:
        raise FormatError(f"{index}: {some(missing)} is missing from {folder}: fetch it again")
    return [inside(folder, name) for name in sorted(set(weight_map.values()))], weight_map


def check_index(index: Path, weight_map: dict[str, str], held: dict[str, list[str]]) -> None:
    """Raise FormatError unless the shards hold just the tensors that the index says, where it says.

    `held` is, for each file name, the tensors in it.
    """
    real = [(name, file) for file, names in held.items() for name in names]
    absent = weight_map.items() - set(real)
    extra = set(real) - weight_map.items()
    if absent or extra:
        wrong = [f"{name} is not in {file}" for name, file in absent]
        wrong += [f"{name} of {file} is not in the index" for name, file in extra]
        raise FormatError(f"{index}: {some(wrong)}")


def inside(folder: Path, name: str) -> Path:
    """A file of a folder, refused if it is a link that leads out of it.

    Links are how the Hugging Face cache is built (snapshots/<commit>/x -> ../../blobs/<hash>), so
    those are followed; nothing else is.
    """
    if not _basename(name):
        raise FormatError(f"{name!r} is not a plain file name")
    path, real = folder / name, (folder / name).resolve()
    home = folder.resolve()
    blobs = home.parent.parent / "blobs"
    cached = home.parent.name == "snapshots" and real.is_relative_to(blobs)
    if not (real.is_relative_to(home) or cached):
        raise FormatError(f"{path} is a link to {real}, outside its folder: copy the file there")
    return path


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """A JSON object of at most `limit` bytes in which no key comes twice."""
    if path.stat().st_size > limit:
        raise FormatError(f"{path} has {path.stat().st_size} bytes; at most {limit} are accepted")
    return parse_json(path.read_bytes(), str(path))


def parse_json(text: bytes, where: str) -> dict[str, Any]:
    """A JSON object in which no key comes twice and every number is finite."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [key for key, _ in pairs]
            twice = {key for key in made if names.count(key) > 1} if len(names) < 1000 else "a key"
            raise FormatError(f"{where}: {some(twice)} comes twice")
        return made

    def finite(number: str) -> Any:
        raise FormatError(f"{where}: {number} is not JSON")

    try:
        made = json.loads(text.decode(), object_pairs_hook=unique, parse_constant=finite)
    except (ValueError, RecursionError) as bad:
        raise FormatError(f"{where} is not JSON: {str(bad)[:200]}") from bad
    if not isinstance(made, dict):
        raise FormatError(f"{where}: expected a JSON object, found {type(made).__name__}")
    return made


def check_values(name: str, tensor: Value) -> None:
    """Raise FormatError for a tensor that is empty or has NaN or infinite elements."""
    from keifu.nn.kernels.formats import Packed  # torch comes with it

    if isinstance(tensor, Packed):
        if not tensor.format.finite(tensor.data):
            raise FormatError(_NONFINITE.format(name))
        return
    if tensor.numel() == 0:
        raise FormatError(f"{name} is empty: shape {list(tensor.shape)}")
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), _SLICE):  # no mask as large as the tensor
        piece = flat[start : start + _SLICE]
        if piece.element_size() == 1:
            piece = piece.float()
        low, high = (piece.real if piece.is_complex() else piece).aminmax()
        if not (math.isfinite(low.item()) and math.isfinite(high.item())):
            raise FormatError(_NONFINITE.format(name))


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few of many names, for a message."""
    names = sorted(names) if not isinstance(names, str) else [names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:200] for name in names[:most]) + more


def no_tensor(where: str, name: str, names: Iterable[str]) -> KeyError:
    """The KeyError of a tensor that is not there, with the nearest that are."""
    return KeyError(f"{where} has no tensor {name!r}; nearest: {', '.join(nearest(name, names))}")


def _basename(name: object) -> bool:
    """Whether a name is one plain file name: no separator, drive, control character or dots."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 255
        and name not in (".", "..")
        and name.isprintable()
        and not any(mark in name for mark in "/\\:")
    )


class Respelt:
    """A source whose names are spelt anew; the tensors are the same."""

    def __init__(self, source: TensorSource, spell: Callable[[str], str]) -> None:
        self._source = source
        self._theirs = {spell(name): name for name in source.names()}

    def names(self) -> list[str]:
        """The new names."""
        return list(self._theirs)

    def shape(self, name: str) -> tuple[int, ...]:
        """As in the file."""
        return self._source.shape(self._theirs[name])

    def dtype(self, name: str) -> torch.dtype:
        """As in the file."""
        return self._source.dtype(self._theirs[name])

    def read(self, name: str) -> Value:
        """The tensor."""
        return self._source.read(self._theirs[name])
