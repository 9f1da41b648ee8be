"""Reading shards: each source of a folder as one long stream of tokens, mapped into memory.

Nothing is read until it is asked for, and what a file says of itself is checked before that.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from keifu.checkpoints.safetensors import read_header
from keifu.core.errors import FormatError, KeifuError, unknown
from keifu.data.example import Example, Ids
from keifu.data.shards import SPLITS, TOKENIZER, Manifest, Shard, hashed, read_manifest
from keifu.text.load import load
from keifu.text.tokenizer import Tokenizer

_OPEN = 256
"""Shards of a stream that are mapped at once."""
_KINDS = {
    torch.uint8: np.dtype("u1"),
    torch.uint16: np.dtype("<u2"),
    torch.uint32: np.dtype("<u4"),
    torch.int64: np.dtype("<i8"),
    torch.uint64: np.dtype("<u8"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """A part of a stream."""

    ids: Ids
    pieces: tuple[int, ...]
    """Tokens of each document's piece in it."""
    keep: NDArray[np.bool_] | None


class Corpus:
    """A finished folder of shards."""

    def __init__(self, folder: str | Path) -> None:
        """Read the manifest and check sizes. Raises KeifuError, FormatError."""
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(folder)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What the ids mean."""
        found = load(self.folder / TOKENIZER)
        if found.fingerprint != self.manifest.fingerprint:
            raise FormatError(f"{self.folder / TOKENIZER} is not the tokenizer of these shards")
        return found

    def sources(self, split: str = "train") -> tuple[str, ...]:
        """The names of what was tokenised, in order."""
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        return tuple(dict.fromkeys(s.source for s in self.manifest.shards if s.split == split))

    def stream(self, source: str, split: str = "train") -> Stream:
        """One source's tokens."""
        if source not in self.sources(split):
            raise unknown(f"source in the {split} split", source, self.sources(split))
        shards = [s for s in self.manifest.shards if s.source == source and s.split == split]
        return Stream(self.folder, self.manifest, shards)

    def streams(self, split: str = "train") -> tuple[Stream, ...]:
        """Every source's tokens."""
        return tuple(self.stream(source, split) for source in self.sources(split))

    def verify(self) -> None:
        """Read everything: hashes, ends, ids. Raises FormatError at the first fault."""
        for shard in self.manifest.shards:
            path = self.folder / shard.file
            if hashed(path) != shard.sha256:
                raise FormatError(f"{path} is not what was written: make the shards again")
            maps = _maps(path, self.manifest, shard)
            if np.any(np.diff(maps["ends"].astype(np.int64), prepend=0) < 1):
                raise FormatError(f"{path}: documents do not end one after another")
            if int(maps["ids"].max()) >= self.manifest.vocabulary:
                raise FormatError(f"{path}: an id is not in the vocabulary")


class Stream:
    """The documents of one source, one after another, as if they were one array."""

    def __init__(self, folder: Path, manifest: Manifest, shards: Sequence[Shard]) -> None:
        """`shards`: this source's, in order."""
        self.folder, self.manifest, self.shards = folder, manifest, tuple(shards)
        self.name = shards[0].source
        self._tokens = list(itertools.accumulate((s.tokens for s in shards), initial=0))
        self._documents = list(itertools.accumulate((s.documents for s in shards), initial=0))
        self._open: dict[int, dict[str, NDArray[Any]]] = {}

    @property
    def tokens(self) -> int:
        """Tokens in all; of pairs, those that are read."""
        return self._tokens[-1]

    @property
    def documents(self) -> int:
        """Documents in all."""
        return self._documents[-1]

    def cut(self, start: int, stop: int) -> Cut:
        """The tokens from `start` to `stop`, counted from the stream's first."""
        if not 0 <= start < stop <= self.tokens:
            raise KeifuError(f"{self.name} has {self.tokens} tokens, none at {start} to {stop}")
        ids: list[Ids] = []
        keep: list[NDArray[np.bool_]] = []
        pieces: list[int] = []
        at = bisect.bisect_right(self._tokens, start) - 1
        while start < stop:
            maps, base = self._maps(at), self._tokens[at]
            a, b = start - base, min(stop, self._tokens[at + 1]) - base
            ids.append(self._checked(at, maps["ids"][a:b]))
            if self.manifest.columns.keep:
                keep.append(maps["keep"][a:b].astype(np.bool_))
            pieces += self._pieces(at, maps["ends"], a, b)
            start, at = base + b, at + 1
        joined = np.concatenate(ids)
        return Cut(
            ids=joined,
            pieces=tuple(pieces),
            keep=np.concatenate(keep) if keep else None,
        )

    def document(self, number: int) -> Example:
        """One document with all that is known of it."""
        if not 0 <= number < self.documents:
            raise KeifuError(f"{self.name} has {self.documents} documents, none is {number}")
        at = bisect.bisect_right(self._documents, number) - 1
        maps, n = self._maps(at), number - self._documents[at]
        a, b = _span(maps["ends"], n)
        base = self._tokens[at]
        if not 0 <= a < b <= self._tokens[at + 1] - base:
            raise self._wrong(at, "documents do not end one after another")
        found = self.cut(base + a, base + b)
        columns = self.manifest.columns
        target = None
        if columns.target:
            c, d = _span(maps["target.ends"], n)
            if not 0 <= c <= d <= len(maps["target"]):
                raise self._wrong(at, "targets do not end one after another")
            target = self._checked(at, maps["target"][c:d])
        return Example(
            ids=found.ids,
            keep=found.keep,
            target=target,
            label=int(maps["label"][n]) if columns.label else None,
            source=self.name,
        )

    def lengths(self) -> NDArray[np.int64]:
        """(documents,) tokens of each document."""
        found = []
        for at in range(len(self.shards)):
            one = np.diff(self._maps(at)["ends"].astype(np.int64), prepend=0)
            if one.min() < 1:
                raise self._wrong(at, "documents do not end one after another")
            found.append(one)
        return np.concatenate(found)

    def _pieces(self, at: int, ends: NDArray[Any], a: int, b: int) -> list[int]:
        """Lengths of documents' pieces between two places of a shard."""
        first, last = np.searchsorted(ends, np.array([a + 1, b], ends.dtype))
        edges = [a, *ends[first:last].tolist(), b]
        found = [y - x for x, y in itertools.pairwise(edges)]
        if min(found) < 1 or len(found) > b - a:
            raise self._wrong(at, "documents do not end one after another")
        return found

    def _checked(self, at: int, ids: NDArray[Any]) -> Ids:
        found = ids.astype(np.int64)
        if found.size and int(found.max()) >= self.manifest.vocabulary:
            raise self._wrong(at, f"id {int(found.max())} is not in the vocabulary")
        return found

    def _wrong(self, at: int, what: str) -> FormatError:
        path = self.folder / self.shards[at].file
        return FormatError(f"{path}: {what}; make the shards again")

    def _maps(self, at: int) -> dict[str, NDArray[Any]]:
        """A shard's arrays; the last few stay open."""
        if at not in self._open:
            shard = self.shards[at]
            while len(self._open) >= _OPEN:
                self._open.pop(next(iter(self._open)), None)
            self._open[at] = _maps(self.folder / shard.file, self.manifest, shard)
        return self._open[at]


def _span(ends: NDArray[Any], n: int) -> tuple[int, int]:
    return (int(ends[n - 1]) if n else 0), int(ends[n])


def _maps(path: Path, manifest: Manifest, shard: Shard) -> dict[str, NDArray[Any]]:
    """A shard's arrays, if its header says what the manifest does."""
    header = read_header(path)
    columns, n = manifest.columns, shard.documents
    expected: dict[str, tuple[np.dtype[Any], int | None]] = {
        "ids": (manifest.width, shard.tokens),
        "ends": (np.dtype("<u8"), n),
    }
    if columns.keep:
        expected["keep"] = (np.dtype("u1"), shard.tokens)
    if columns.target:
        expected |= {"target": (manifest.width, None), "target.ends": (np.dtype("<u8"), n)}
    if columns.label:
        expected["label"] = (np.dtype("<i8"), n)
    if header.tensors.keys() != expected.keys():
        found = ", ".join(sorted(header.tensors))[:200]
        raise FormatError(f"{path} has {found}, not {', '.join(sorted(expected))}")
    begins = path.stat().st_size - max(info.end for info in header.tensors.values())
    maps: dict[str, NDArray[Any]] = {}
    for name, (kind, size) in expected.items():
        info = header.tensors[name]
        if (
            _KINDS.get(info.dtype) != kind
            or len(info.shape) != 1
            or size not in (None, *info.shape)
        ):
            raise FormatError(
                f"{path}: {name} is {info.dtype} {list(info.shape)}, not {kind} {size}"
            )
        maps[name] = np.empty(0, kind)  # nothing cannot be mapped
        if info.shape[0]:
            maps[name] = np.memmap(path, kind, "r", begins + info.start, info.shape)
    if int(maps["ends"][-1]) != shard.tokens:
        raise FormatError(f"{path}: its documents end at {int(maps['ends'][-1])}")
    return maps
