"""fastText's binary models, read and written: arguments, dictionary, input and output matrices.

The layout is the released code's, version 12: magic, version, arguments, counts, entries (word,
NUL, count, kind), then for each matrix a flag (quantised), rows, columns and float32 values. All
numbers are little-endian and unaligned. Version 11 is the same but for classifiers, which had no
character n-grams.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keifu.checkpoints.word2vec import LONGEST, MOST_WIDE, Reading, refuse_nonfinite
from keifu.core.atomic import written
from keifu.core.errors import FormatError, KeifuError

MAGIC = 793712314
VERSION = 12
LOSSES = ("hs", "ns", "softmax", "ova")
MODELS = ("cbow", "skipgram", "supervised")
_ARGS = struct.Struct("<12id")
_COUNTS = struct.Struct("<iiiqq")
_ENTRY = struct.Struct("<qb")
_SHAPE = struct.Struct("<qq")
_ROWS = 1 << 14


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """How a model was trained, under fastText's names; the file keeps these and no others."""

    dim: int = 100
    ws: int = 5
    epoch: int = 5
    minCount: int = 5
    neg: int = 5
    wordNgrams: int = 1
    loss: str = "ns"
    model: str = "skipgram"
    bucket: int = 2_000_000
    minn: int = 3
    maxn: int = 6
    lrUpdateRate: int = 100
    t: float = 1e-4

    def pack(self) -> bytes:
        """As the file has them."""
        return _ARGS.pack(
            self.dim, self.ws, self.epoch, self.minCount, self.neg, self.wordNgrams,
            LOSSES.index(self.loss) + 1, MODELS.index(self.model) + 1, self.bucket, self.minn,
            self.maxn, self.lrUpdateRate, self.t,
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: bytes, where: str) -> Arguments:
        """From the file; FormatError where a value cannot be."""
        dim, ws, epoch, least, neg, runs, loss, model, bucket, minn, maxn, rate, t = _ARGS.unpack(
            data
        )
        limits = {
            "dim": (dim, 1, MOST_WIDE), "wordNgrams": (runs, 0, 64), "loss": (loss, 1, 4),
            "model": (model, 1, 3), "bucket": (bucket, 0, 2**31 - 1), "minn": (minn, 0, 64),
            "maxn": (maxn, 0, 64), "neg": (neg, 0, 1 << 20), "ws": (ws, 0, 1 << 20),
        }  # fmt: skip
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise FormatError(f"{where}: {name} is {value}, not {low} to {high}")
        if not bucket and (maxn > 0 or runs > 1):
            raise FormatError(f"{where}: there are n-grams (maxn {maxn}) and no buckets for them")
        return cls(
            dim=dim, ws=ws, epoch=epoch, minCount=least, neg=neg, wordNgrams=runs,
            loss=LOSSES[loss - 1], model=MODELS[model - 1], bucket=bucket, minn=minn, maxn=maxn,
            lrUpdateRate=rate, t=t,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FastTextModel:
    """A model in memory. Words are bytes: their n-grams are hashed byte by byte."""

    args: Arguments
    words: list[bytes]
    labels: list[bytes]
    counts: NDArray[np.int64]
    """(words + labels,) occurrences."""
    tokens: int
    """Of the text it was trained on."""
    input: NDArray[np.float32]
    """(words + buckets, dim)."""
    output: NDArray[np.float32]
    """(words, dim), or (labels, dim) of a classifier."""


class _Cursor:
    """A place in the file that never leaves it."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def take(self, size: int, what: str) -> bytes:
        left = len(self.data) - self.at
        if size > left:
            raise FormatError(
                f"{self.path} ends within the {what}: {size} bytes are needed at byte {self.at}, "
                f"{left} are there"
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def word(self, number: int) -> bytes:
        end = self.data.find(b"\0", self.at, self.at + LONGEST)
        if end < 0:
            raise FormatError(
                f"{self.path}: entry {number} at byte {self.at} has no end within {LONGEST} bytes"
            )
        return self.take(end + 1 - self.at, "dictionary")[:-1]


def is_fasttext(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as fastText's do."""
    with open(path, "rb") as file:
        return file.read(4) == struct.pack("<i", MAGIC)


def read_fasttext(path: str | os.PathLike[str], *, reading: Reading = Reading()) -> FastTextModel:
    """A model; the whole layout is checked before a matrix is touched.

    Raises:
        FormatError: truncated, contradictory, quantised (.ftz) or of an unknown version.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            if path.stat().st_size < 8 or not is_fasttext(path):
                raise FormatError(f"{path} is no fastText model: its first bytes are others")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(_Cursor(data, path), reading)
    except OSError as refused:
        raise KeifuError(f"cannot read {path}: {refused.strerror}") from refused


def _read(cursor: _Cursor, reading: Reading) -> FastTextModel:
    path = cursor.path
    version = struct.unpack("<ii", cursor.take(8, "header"))[1]
    if version not in (11, VERSION):
        raise FormatError(f"{path}: version {version} is not known: 11 and {VERSION} are")
    args = Arguments.unpack(cursor.take(_ARGS.size, "arguments"), str(path))
    if version == 11 and args.model == "supervised":
        args = replace(args, maxn=0)  # as fastText itself reads the older classifiers
    size, nwords, nlabels, tokens, pruned = _COUNTS.unpack(cursor.take(_COUNTS.size, "dictionary"))
    if min(nwords, nlabels) < 0 or nwords + nlabels != size or not nwords:
        raise FormatError(f"{path}: {nwords} words and {nlabels} labels do not make {size} entries")
    if size * 10 > len(cursor.data) - cursor.at:
        raise FormatError(f"{path} ends within the dictionary: {size} entries do not fit in it")
    if pruned > 0:
        raise FormatError(_quantised(path))
    entries, counts = _entries(cursor, size, nwords)
    shapes = {
        "input": (nwords + args.bucket, args.dim),
        "output": (nlabels if args.model == "supervised" else nwords, args.dim),
    }
    places = {name: _place(cursor, name, shape) for name, shape in shapes.items()}
    if cursor.at != len(cursor.data):
        raise FormatError(f"{path}: {len(cursor.data) - cursor.at} bytes follow after its end")
    words = [reading.decode(word, str(path)) for word in entries]
    made = {}
    for name, shape in shapes.items():
        flat = np.frombuffer(cursor.data, "<f4", shape[0] * shape[1], places[name])
        made[name] = flat.astype(np.float32).reshape(shape)
        del flat
        if not reading.allow_nonfinite:
            refuse_nonfinite(made[name], words if name == "input" else [], f"{path}, {name}")
    return FastTextModel(
        args=args, words=entries[:nwords], labels=entries[nwords:], counts=counts, tokens=tokens,
        input=made["input"], output=made["output"],
    )  # fmt: skip


def _entries(cursor: _Cursor, size: int, nwords: int) -> tuple[list[bytes], NDArray[np.int64]]:
    """Words, then labels, and how often each was seen."""
    found: dict[bytes, int] = {}
    for number in range(size):
        word = cursor.word(number)
        count, kind = _ENTRY.unpack(cursor.take(_ENTRY.size, "dictionary"))
        if kind != (number >= nwords) or count < 0:
            raise FormatError(
                f"{cursor.path}: entry {number}, {word[:40]!r}, is of kind {kind} with count "
                f"{count}: words (0) come first, then labels (1)"
            )
        if word in found:
            raise FormatError(f"{cursor.path}: the word {word[:40]!r} comes twice")
        found[word] = count
    return list(found), np.fromiter(found.values(), np.int64, len(found))


def _place(cursor: _Cursor, name: str, shape: tuple[int, int]) -> int:
    """Where a matrix's values start; its flag and shape are as they must be."""
    (quantised,) = cursor.take(1, f"{name} matrix")
    if quantised > 1 or (quantised and name == "input"):
        raise FormatError(_quantised(cursor.path))
    got = _SHAPE.unpack(cursor.take(_SHAPE.size, f"{name} matrix"))
    if got != shape:
        raise FormatError(f"{cursor.path}: the {name} matrix is {got}, the rest says {shape}")
    size = 4 * shape[0] * shape[1]
    left = len(cursor.data) - cursor.at
    if size > left:
        raise FormatError(f"{cursor.path} ends within the {name} matrix: {left} of {size} bytes")
    cursor.at += size
    return cursor.at - size


def _quantised(path: Path) -> str:
    return f"{path} is quantised or pruned (.ftz), which is not supported: use the model's .bin"


def write_fasttext(path: str | os.PathLike[str], model: FastTextModel) -> None:
    """Write a model that fastText loads; KeifuError for what it could not."""
    entries = [*model.words, *model.labels]
    for word in entries:
        if not word or word.translate(None, b" \n\r\t\v\f\0") != word:
            raise KeifuError(f"the word {word!r} cannot be written: it has white space or nothing")
    with written(path) as file:
        file.write(struct.pack("<ii", MAGIC, VERSION) + model.args.pack())
        nwords, nlabels = len(model.words), len(model.labels)
        file.write(_COUNTS.pack(len(entries), nwords, nlabels, model.tokens, -1))
        for number, (word, count) in enumerate(zip(entries, model.counts.tolist(), strict=True)):
            file.write(word + b"\0" + _ENTRY.pack(count, number >= nwords))
        for matrix in (model.input, model.output):
            file.write(b"\0" + _SHAPE.pack(*matrix.shape))
            for first in range(0, len(matrix), _ROWS):  # no second copy of gigabytes
                file.write(np.ascontiguousarray(matrix[first : first + _ROWS], "<f4").data)
