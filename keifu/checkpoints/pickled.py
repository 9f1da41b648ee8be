"""Pickled weights (.bin, .pt, .pth), only where the user allows them; original LLaMA shards joined.

A pickle is a program. These files are opened only with `allow_pickle`, then by torch's restricted
unpickler (`weights_only=True`) with no way round it, after the archive itself has been looked at.

`consolidated.NN.pth` are the model-parallel ranks of Meta's own code (fairscale layers): column
parallel matrices are cut along their rows, row parallel ones along their columns, the embedding
along its width (LLaMA 1 and 2) or its vocabulary (Llama 3), and the rest is in every rank alike.
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from keifu.checkpoints.source import check_index, no_tensor, open_shards, some
from keifu.core.errors import FormatError, KeifuError

_ENTRIES = 100_000
_PROGRAM_BYTES = 64 * 2**20
_LEGACY_BYTES = 16 * 2**30
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_ROWS = ("wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight", "output.weight")
_COLUMNS = ("wo.weight", "w2.weight")
_EMBEDDING = "tok_embeddings.weight"


class PickledSource:
    """The tensors of pickled checkpoints: a `TensorSource`.

    `path` is a file, or a folder with `pytorch_model.bin`, its shards and index, or
    `consolidated.NN.pth`. Raises KeifuError without `allow_pickle`, FormatError for what is
    damaged or holds anything but tensors.
    """

    def __init__(self, path: Path, *, allow_pickle: bool = False) -> None:
        self.path = path
        ranks = sorted(path.glob("consolidated.*.pth")) if path.is_dir() else []
        weight_map = None
        if not ranks:
            files, weight_map = (
                ([path], None) if path.is_file() else open_shards(path, "pytorch_model", "bin")
            )
        refuse_pickle(ranks or files, allow_pickle)
        self._pieces: dict[str, list[Tensor]] = {}
        if ranks:
            self._join(ranks)
            return
        held = {}
        for file in files:
            tensors = load_pickle(file)
            held[file.name] = list(tensors)
            if twice := tensors.keys() & self._pieces.keys():
                raise FormatError(f"{file}: {some(twice)} is in another shard too")
            self._pieces |= {name: [tensor] for name, tensor in tensors.items()}
        if weight_map is not None:
            check_index(path / "pytorch_model.bin.index.json", weight_map, held)

    def names(self) -> list[str]:
        """Every tensor's name, in the order of the file."""
        return list(self._pieces)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, its pieces joined."""
        pieces = self._of(name)
        shape = list(pieces[0].shape)
        if (dim := self._cut(name)) is not None:
            shape[dim] = sum(piece.shape[dim] for piece in pieces)
        return tuple(shape)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's element type."""
        return self._of(name)[0].dtype

    def read(self, name: str) -> Tensor:
        """The tensor: a view of the file's private pages, or the pieces joined."""
        pieces = self._of(name)
        dim = self._cut(name)
        return pieces[0] if dim is None else torch.cat(pieces, dim=dim)

    def _of(self, name: str) -> list[Tensor]:
        if name not in self._pieces:
            raise no_tensor(str(self.path), name, self._pieces)
        return self._pieces[name]

    def _join(self, ranks: list[Path]) -> None:
        """Take the tensors of every rank, if the ranks fit together."""
        expected = [f"consolidated.{k:02d}.pth" for k in range(len(ranks))]
        if [rank.name for rank in ranks] != expected:
            raise FormatError(f"{self.path}: has {some(r.name for r in ranks)}; a rank is missing")
        loaded = [load_pickle(rank) for rank in ranks]
        for rank, tensors in zip(ranks, loaded, strict=True):
            if wrong := tensors.keys() ^ loaded[0].keys():
                raise FormatError(f"{rank}: {some(wrong)} is not in every rank")
        self._pieces = {name: [tensors[name] for tensors in loaded] for name in loaded[0]}
        for name, pieces in self._pieces.items():
            shapes = {(piece.dim(), piece.shape, piece.dtype) for piece in pieces}
            if len(shapes) > 1 or (self._cut(name) is not None and pieces[0].dim() != 2):
                raise FormatError(f"{self.path}: the ranks' pieces of {name} do not fit together")
            if self._cut(name) is None and any(not piece.equal(pieces[0]) for piece in pieces):
                raise FormatError(f"{self.path}: {name} differs from rank to rank")

    def _cut(self, name: str) -> int | None:
        """The dimension along which ranks hold pieces of a tensor; None if each has all of it."""
        if len(self._pieces[name]) == 1:
            return None
        last_two = ".".join(name.split(".")[-2:])
        if last_two in _ROWS:
            return 0
        if last_two in _COLUMNS:
            return 1
        if last_two == _EMBEDDING:
            width = self._pieces["norm.weight"][0].shape[0] if "norm.weight" in self._pieces else -1
            return 0 if self._pieces[name][0].shape[-1] == width else 1
        return None


def refuse_pickle(files: list[Path], allow_pickle: bool) -> None:
    """Raise KeifuError, saying what to do instead, unless pickles are allowed."""
    if not allow_pickle:
        raise KeifuError(
            f"{some(str(file) for file in files)} is a Python pickle, which can run code when it "
            "is opened: use a safetensors or GGUF version; or, if you trust where it comes from, "
            "pass --allow-pickle once to `keifu convert` and keep the result"
        )


def load_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of one pickled file, by torch's restricted unpickler alone.

    Memory-mapped where the file is a zip archive (torch 1.6 and later). Raises FormatError.
    """
    archive = zipfile.is_zipfile(path)
    if archive:
        _check_archive(path)
    elif path.stat().st_size > _LEGACY_BYTES:
        raise FormatError(f"{path}: an old pickle of more than {_LEGACY_BYTES} bytes")
    try:
        made = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as refused:  # a hostile pickle can make the unpickler fail in any way
        first = str(refused).strip().splitlines() or [""]
        raise FormatError(
            f"{path} is damaged or holds more than tensors, so it was not opened: "
            f"{type(refused).__name__}: {first[0][:200]}"
        ) from refused
    for wrapper in _WRAPPERS:
        if isinstance(made, Mapping) and isinstance(made.get(wrapper), Mapping):
            made = made[wrapper]
    if not isinstance(made, Mapping) or not made:
        raise FormatError(f"{path} holds {type(made).__name__}, not tensors by name")
    wrong = [str(k) for k, v in made.items() if not (isinstance(k, str) and _plain(v))]
    if wrong:
        raise FormatError(f"{path}: {some(wrong)} is not a plain tensor")
    return {name: tensor.detach() for name, tensor in made.items()}


def _plain(value: object) -> bool:
    """Whether a value is a dense tensor that its storage really holds (no view made huge)."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and value.device.type == "cpu"
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _check_archive(path: Path) -> None:
    """Refuse an archive that torch.save could not have written: packed, linked, overlapping."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as bad:
        raise FormatError(f"{path}: {bad}") from bad
    if len(infos) > _ENTRIES or len({info.filename for info in infos}) < len(infos):
        raise FormatError(f"{path} has {len(infos)} entries: too many, or some twice")
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise FormatError(f"{path}: {info.filename!r} is compressed or encrypted")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise FormatError(f"{path}: {info.filename!r} is a link")
        if info.filename.endswith(".pkl") and info.file_size > _PROGRAM_BYTES:
            raise FormatError(f"{path}: {info.filename!r} has {info.file_size} bytes")
    if sum(info.file_size for info in infos) > path.stat().st_size:
        raise FormatError(f"{path}: its entries claim more bytes than the file has")
