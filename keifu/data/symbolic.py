"""Tasks of symbols that show what a model remembers: recall, selective copying, one needle.

The same rows train a model (recipes) and examine it (`keifu probe`). Drawn with NumPy, so that
whoever only asks a model need not import what trains one.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from keifu.core.errors import ConfigError, FormatError, KeifuError, unknown

Ids = NDArray[np.int64]
FILE = "task.json"
"""Where a checkpoint's folder says what it was trained on."""
_MOST = 1 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Rows of symbols, and what a model is to say in them."""

    ids: Ids
    """(rows, length): what is read."""
    places: tuple[int, ...]
    """Where an answer is due: what stands before a place is to predict it."""
    answers: Ids
    """(rows, places): what is to be predicted there."""

    def labels(self, none: int) -> Ids:
        """(rows, length): the answers at their places, `none` elsewhere."""
        made = np.full_like(self.ids, none)
        made[:, list(self.places)] = self.answers
        return made


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What is drawn; the fields are what makes it hard."""

    name: ClassVar[str]
    bounds: ClassVar[Mapping[str, tuple[int, int]]] = {}
    """Least and most of a field, where it is not 1 and a million."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, (low, high) = getattr(self, field.name), self.bounds.get(field.name, (1, _MOST))
            if value is None and field.default is None:
                continue
            if type(value) is not int or not low <= value <= high:
                raise ConfigError(
                    f"{self.name}: {field.name}={value!r} is not allowed: from {low} to {high}"
                )

    @abstractmethod
    def symbols(self) -> tuple[str, ...]:
        """What each id is called."""

    @abstractmethod
    def draw(self, count: int, seed: int) -> Rows:
        """`count` random rows; the same seed draws the same ones."""

    def changed(self, **values: int | None) -> Self:
        """The task with these fields, where they are given."""
        given = {name: value for name, value in values.items() if value is not None}
        return dataclasses.replace(self, **given)

    def save(self, folder: str | Path) -> None:
        """Write down, beside a checkpoint, what it was trained on."""
        record = {"task": self.name, **dataclasses.asdict(self)}
        (Path(folder) / FILE).write_text(json.dumps(record, indent=2) + "\n", "utf-8")


@dataclass(frozen=True, kw_only=True)
class AssociativeRecall(Task):
    """Pairs of a key and a value, blanks, then each told key: what was its value?

    Poli et al. 2023 (Hyena), section 4.1, with every key asked for as in Arora et al. 2023
    (Zoology), whose rows have many queries.
    """

    name = "associative-recall"
    keys: int = 6
    values: int = 6
    pairs: int = 6
    """Keys of a row"""
    lag: int = 12
    """Blanks between telling and asking"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs > self.keys:
            raise ConfigError(f"{self.name}: {self.pairs} pairs need as many keys, not {self.keys}")

    def symbols(self) -> tuple[str, ...]:
        """Keys, values, the blank."""
        keys, values = (f"k{i}" for i in range(self.keys)), (f"v{i}" for i in range(self.values))
        return (*keys, *values, "_")

    def draw(self, count: int, seed: int) -> Rows:
        """Rows of 4 * pairs + lag symbols."""
        made = np.random.default_rng(seed)
        value = made.integers(self.keys, self.keys + self.values, (count, self.keys))
        told = made.random((count, self.keys)).argsort(1)[:, : self.pairs]
        order = made.random((count, self.pairs)).argsort(1)
        asked = np.take_along_axis(told, order, 1)
        first, second = (
            np.stack([k, np.take_along_axis(value, k, 1)], 2).reshape(count, -1)
            for k in (told, asked)
        )
        blanks = np.full((count, self.lag), self.keys + self.values)
        ids = np.concatenate([first, blanks, second], 1)
        places = tuple(range(2 * self.pairs + self.lag + 1, ids.shape[1], 2))
        return Rows(ids=ids, places=places, answers=ids[:, list(places)])


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Task):
    """Symbols at random places among blanks, to be said again in their order at as many signs.

    Gu & Dao 2023 (Mamba), section 4.1: where they stand differs from row to row.
    """

    name = "selective-copying"
    kinds: int = 8
    """Symbols there are"""
    count: int = 4
    """Symbols of a row"""
    length: int = 32
    """Places that they stand at, the others blank"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count > self.length:
            raise ConfigError(f"{self.name}: {self.count} symbols do not fit in {self.length}")

    def symbols(self) -> tuple[str, ...]:
        """The symbols, the blank, the sign."""
        return (*(f"s{i}" for i in range(self.kinds)), "_", ">")

    def draw(self, count: int, seed: int) -> Rows:
        """Rows of length + count + 1 symbols; the first sign asks for the first symbol."""
        made = np.random.default_rng(seed)
        said = made.integers(0, self.kinds, (count, self.count))
        places = np.sort(made.random((count, self.length)).argsort(1)[:, : self.count], 1)
        ids = np.full((count, self.length + self.count + 1), self.kinds + 1)
        ids[:, : self.length] = self.kinds
        np.put_along_axis(ids, places, said, 1)
        asked = tuple(range(self.length + 1, ids.shape[1]))
        return Rows(ids=ids, places=asked, answers=said)


@dataclass(frozen=True, kw_only=True)
class Needle(Task):
    """One marked symbol somewhere in a hay of others; at the end, which one was marked?

    The passkey test of Mohtashami & Jaggi 2023 (arXiv 2305.16300), in single symbols.
    """

    name = "needle"
    bounds: ClassVar[Mapping[str, tuple[int, int]]] = {"length": (5, _MOST), "depth": (0, 100)}
    kinds: int = 8
    """Symbols there are"""
    length: int = 64
    """Symbols of a row, all told"""
    depth: int | None = None
    """Where the marked one stands, in per cent of the row; None: anywhere"""

    def symbols(self) -> tuple[str, ...]:
        """The symbols, the mark, the question."""
        return (*(f"s{i}" for i in range(self.kinds)), "!", "?")

    def draw(self, count: int, seed: int) -> Rows:
        """Rows: hay, mark, symbol, hay, question, answer."""
        made = np.random.default_rng(seed)
        ids = made.integers(0, self.kinds, (count, self.length))
        last = self.length - 4
        if self.depth is None:
            at = made.integers(0, last + 1, count)
        else:
            at = np.full(count, round(last * self.depth / 100))
        row = np.arange(count)
        ids[row, at] = self.kinds
        answers = ids[row, at + 1][:, None]
        ids[:, -2], ids[:, -1] = self.kinds + 1, answers[:, 0]
        return Rows(ids=ids, places=(self.length - 1,), answers=answers)


TASKS: Mapping[str, type[Task]] = {
    task.name: task for task in (AssociativeRecall, SelectiveCopying, Needle)
}
"""Every task by the name that a file says."""


def task_of(folder: str | Path) -> Task:
    """What the checkpoint in a folder was trained on.

    Raises:
        KeifuError: its folder does not say, or says what no task is.
    """
    path = Path(folder) / FILE
    try:
        with path.open("rb") as file:
            record: Any = json.loads(file.read(1 << 16))
    except OSError as refused:
        raise KeifuError(f"{path}: {refused.strerror}") from None
    except ValueError as wrong:
        raise FormatError(f"{path} is no JSON: {wrong}") from None
    if not isinstance(record, dict) or not isinstance(record.get("task"), str):
        raise FormatError(f'{path} names no task: {{"task": ...}}')
    name = record.pop("task")
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    known = [field.name for field in dataclasses.fields(TASKS[name])]
    for key in record:
        if key not in known:
            raise unknown(f"field of {name}", key, known)
    return TASKS[name](**record)
