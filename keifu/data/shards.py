"""The folder of shards: tokenised documents as safetensors files, and a manifest that vouches.

    manifest.json                    written last: without it the folder is not finished
    tokenizer/                       what the ids mean
    train-books-000000-000.safetensors
    held-out-books-000000-000.safetensors

A shard holds documents one after another: `ids` (uint16, or uint32 where the vocabulary is larger)
and `ends`, for each document where it ends; beside them what else documents have (`Columns`). The
same texts, tokenizer and options give the same bytes, however many processes wrote them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from keifu.core.atomic import write_text, written
from keifu.core.errors import FormatError, KeifuError
from keifu.data.example import Example

MANIFEST, TOKENIZER, FORMAT = "manifest.json", "tokenizer", "keifu-shards/1"
SPLITS = ("train", "held-out")
_MOST = 1 << 30
"""Bytes of a manifest that are read."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What a manifest says of one file."""

    file: str
    sha256: str
    bytes: int
    source: str
    split: str
    documents: int
    tokens: int
    """In `ids`; of pairs, what is read."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What documents have beside ids; the same for all of a folder."""

    keep: bool = False
    """`keep`, a byte a token: whether it is to be learnt."""
    target: bool = False
    """`target` and `target.ends`: what is to be written of each document."""
    label: bool = False
    """`label`, a number a document: its class."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is in a folder of shards."""

    fingerprint: str
    """The tokenizer's: see `Tokenizer.fingerprint`."""
    vocabulary: int
    """Ids there are; every id is below it."""
    begin: tuple[int, ...]
    end: tuple[int, ...]
    """The ids that stand round every document."""
    columns: Columns
    options: Mapping[str, Any]
    """How the shards were made, for the reader."""
    dropped: Mapping[str, int]
    """Documents that were left out, by reason."""
    shards: tuple[Shard, ...]

    @property
    def width(self) -> np.dtype[Any]:
        """The type of ids in files."""
        return width(self.vocabulary)

    def count(self, split: str = "train") -> dict[str, dict[str, int]]:
        """Of each source, its documents and tokens."""
        found: dict[str, dict[str, int]] = {}
        for shard in self.shards:
            if shard.split == split:
                one = found.setdefault(shard.source, {"documents": 0, "tokens": 0})
                one["documents"] += shard.documents
                one["tokens"] += shard.tokens
        return found

    @property
    def identity(self) -> str:
        """A hash of all that training could see of the folder."""
        said = [self.fingerprint, *(f"{s.file} {s.sha256}" for s in self.shards)]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()


def width(vocabulary: int) -> np.dtype[Any]:
    """The smallest type that holds every id of a vocabulary."""
    if vocabulary > 1 << 32:
        raise KeifuError(f"a vocabulary of {vocabulary} does not fit into 32 bits")
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")


def check_name(name: str) -> str:
    """A source's name that can be part of a file's name."""
    if not _NAME.fullmatch(name):
        raise KeifuError(f"a source cannot be called {name!r}: letters, digits, '.', '_' and '-'")
    return name


def write_shard(
    path: Path, examples: Sequence[Example], *, source: str, split: str, vocabulary: int
) -> Shard:
    """Write documents as one file, whole or not at all."""
    from safetensors.numpy import save

    first = examples[0]
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.concatenate([e.ids for e in examples]).astype(width(vocabulary)),
        "ends": _ends([e.ids for e in examples]),
    }
    if first.keep is not None:
        arrays["keep"] = np.concatenate([e.keep for e in examples]).astype(np.uint8)
    if first.target is not None:
        targets = [_known(e.target) for e in examples]
        arrays["target"] = np.concatenate(targets).astype(width(vocabulary))
        arrays["target.ends"] = _ends(targets)
    if first.label is not None:
        arrays["label"] = np.array([_known(e.label) for e in examples], np.int64)
    data = save(arrays)
    with written(path) as file:
        file.write(data)
    return Shard(
        file=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        source=source,
        split=split,
        documents=len(examples),
        tokens=int(arrays["ends"][-1]),
    )


def _ends(rows: Sequence[NDArray[Any]]) -> NDArray[np.uint64]:
    return np.cumsum([len(row) for row in rows], dtype=np.uint64)


def _known(value: R | None) -> R:
    assert value is not None, "documents of one shard have the same columns"
    return value


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest: the folder is finished."""
    said = {"format": FORMAT, **asdict(manifest)}
    write_text(folder / MANIFEST, json.dumps(said, indent=1, sort_keys=True) + "\n")


def read_manifest(folder: str | Path) -> Manifest:
    """Read a folder's manifest and check it against the sizes of the files.

    Raises:
        KeifuError: there is none (the folder is not finished).
        FormatError: it is damaged, or files are missing or of another size.
    """
    path = Path(folder) / MANIFEST
    try:
        if os.path.getsize(path) > _MOST:
            raise FormatError(f"{path}: a manifest of {os.path.getsize(path)} bytes is not read")
        said = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise KeifuError(
            f"{folder} has no {MANIFEST}: it is no folder of shards, or is not finished "
            "(keifu data tokenize makes and continues one)"
        ) from None
    except OSError as refused:
        raise KeifuError(f"{path}: {refused.strerror}") from None
    except (ValueError, RecursionError) as wrong:
        raise FormatError(f"{path} is no JSON: {wrong}") from None
    if not isinstance(said, dict) or said.pop("format", None) != FORMAT:
        raise FormatError(f"{path} is no manifest of {FORMAT}")
    shards = said.pop("shards", None)
    if not isinstance(shards, list):
        raise FormatError(f"{path}: shards are not a list")
    columns = parsed(Columns, said.pop("columns", None), f"{path}: columns")
    every = tuple(parsed(Shard, one, f"{path}: shard {n}") for n, one in enumerate(shards))
    said |= {"shards": every, "columns": columns}
    said |= {name: _ids(said.get(name), f"{path}: {name}") for name in ("begin", "end")}
    manifest = parsed(Manifest, said, str(path))
    if manifest.vocabulary < 1:
        raise FormatError(f"{path}: a vocabulary of {manifest.vocabulary}")
    for shard in every:
        _check(path.parent, shard)
    return manifest


def _check(folder: Path, shard: Shard) -> None:
    """A shard's file is in the folder, with the size that the manifest says."""
    if Path(shard.file).name != shard.file or not shard.file.endswith(".safetensors"):
        raise FormatError(f"{folder / MANIFEST}: {shard.file!r:.200} is no name of a shard")
    if shard.split not in SPLITS or not _NAME.fullmatch(shard.source):
        raise FormatError(f"{folder / MANIFEST}: {shard.file} is of {shard.split}/{shard.source}")
    if shard.documents < 1 or shard.tokens < shard.documents:
        raise FormatError(f"{folder / MANIFEST}: {shard.file} has no documents")
    try:
        size = os.path.getsize(folder / shard.file)
    except OSError:
        raise FormatError(f"{folder / shard.file} is missing: make the shards again") from None
    if size != shard.bytes:
        raise FormatError(
            f"{folder / shard.file} has {size} bytes, not {shard.bytes}: it is damaged; "
            "make the shards again"
        )


def hashed(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parsed(cls: type[R], said: object, where: str) -> R:
    """A flat dataclass from a JSON object with exactly its fields, of its fields' plain types."""
    fields = {f.name: str(f.type) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(said, dict) or said.keys() != fields.keys():
        raise FormatError(f"{where}: expected an object with {', '.join(fields)}")
    plain = {"int": int, "str": str, "bool": bool}
    for name, kind in fields.items():
        if kind in plain and type(said[name]) is not plain[kind]:
            raise FormatError(f"{where}: {name} is {said[name]!r:.80}, no {kind}")
        if kind.startswith("Mapping") and not isinstance(said[name], dict):
            raise FormatError(f"{where}: {name} is no object")
    return cls(**said)


def _ids(said: object, where: str) -> tuple[int, ...]:
    if not isinstance(said, list) or any(type(i) is not int or i < 0 for i in said):
        raise FormatError(f"{where}: expected token ids")
    return tuple(said)
