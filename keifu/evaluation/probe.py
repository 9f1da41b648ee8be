"""A probe: a question put to a model at every point of a grid, and how it is run.

A probe is a frozen dataclass of options. It begins a `Trial` with a model: the grid's cells, and
what to do in one. Running them side by side, resuming, means and tables are here, once.
"""

from __future__ import annotations

import asyncio
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

from keifu.core.errors import KeifuError
from keifu.core.registry import Registry
from keifu.evaluation.findings import Column, Findings, Picture, Row, means
from keifu.evaluation.ledger import Ledger
from keifu.lm.base import LM

Told = Callable[[str], None]
"""Hears how far it is."""
MODEL = Column("model", "name")
BOUNDS = (1, 1 << 24)


@dataclass(frozen=True)
class Subject:
    """Who is asked: the model is opened when somebody needs it."""

    ref: str
    open: Callable[[], LM]

    @cached_property
    def lm(self) -> LM:
        """The model."""
        return self.open()

    @property
    def name(self) -> str:
        """Short enough for a table."""
        path = Path(self.ref)
        return path.name if path.exists() else self.ref

    @property
    def folder(self) -> Path | None:
        """Its checkpoint's folder, if it is one of this machine."""
        path = Path(self.ref)
        return path if path.is_dir() else None

    def close(self) -> None:
        """Free the model, if it was opened."""
        if "lm" in vars(self):
            self.lm.close()


class Trial(Protocol):
    """One model before one probe."""

    @property
    def cells(self) -> Sequence[Row]:
        """The points of the grid; what differs beyond the probe's axes is averaged over."""

    @property
    def notes(self) -> Sequence[str]:
        """What became known on the way, a line each."""

    @property
    def settings(self) -> Row:
        """What else the cells depend on (a text's hash, a task), for who resumes them."""

    async def look(self, cell: Row) -> Row:
        """The measures in one cell."""

    def close(self) -> None:
        """Free what the trial holds."""


class Probe(ABC):
    """Options of one kind of question; subclasses are frozen dataclasses, one a file."""

    title: ClassVar[str]
    axes: ClassVar[tuple[Column, ...]]
    measures: ClassVar[tuple[Column, ...]]
    picture: ClassVar[Picture]
    examples: ClassVar[tuple[str, ...]] = ()
    """Command lines after `keifu probe`, for its help."""
    grid: ClassVar[frozenset[str]] = frozenset()
    """Options that say which cells there are, not what is done in one."""
    loads: ClassVar[bool] = True
    """Whether it asks a loaded model; otherwise it opens the model itself."""
    models: ClassVar[str] = "MODEL..."
    """What it is called with, as the help has it."""
    parallel: int = 1
    """Cells that are under way at once."""

    @abstractmethod
    def begin(self, subject: Subject) -> Trial:
        """A trial with this model; KeifuError if it cannot be asked this."""

    def common(self) -> dict[str, Any]:
        """The options that every cell depends on."""
        fields = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {k: _plain(v) for k, v in fields.items() if k not in {*self.grid, "parallel"}}


probes: Registry[type[Probe]] = Registry("probe", "keifu.evaluation.probes", "probe", Probe)
"""Every probe by name; the name is the file's."""


def examine(
    name: str,
    probe: Probe,
    subjects: Sequence[Subject],
    *,
    told: Told = lambda text: None,
    out: Path | None = None,
) -> Findings:
    """Run a probe on models, one after another.

    Args:
        name: what the probe is called.
        told: hears progress.
        out: a folder that keeps finished cells, so that the same call goes on where it ended.
    """
    if not subjects:
        raise KeifuError(f"no model to probe: keifu probe {name} MODEL")
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        names = [subject.ref for subject in subjects]
    rows: list[Row] = []
    notes: list[str] = []
    for shown, subject in zip(names, subjects, strict=True):
        trial = probe.begin(subject)
        try:
            settings = {"probe": name, "model": subject.ref, **probe.common(), **trial.settings}
            file = None if out is None else out / f"{_file_name(shown)}.jsonl"
            found = asyncio.run(
                _through(trial, Ledger(file, settings), probe.parallel, shown, told)
            )
            rows += [{MODEL.name: shown, **row} for row in found]
            notes += [line if len(names) == 1 else f"{shown}: {line}" for line in trial.notes]
        finally:
            trial.close()
            subject.close()
    axes = (MODEL, *probe.axes)
    return Findings(
        probe=name,
        title=probe.title,
        axes=axes,
        measures=probe.measures,
        rows=tuple(means(rows, axes, probe.measures)),
        picture=probe.picture,
        settings={**probe.common(), "models": [subject.ref for subject in subjects]},
        notes=tuple(dict.fromkeys(notes)),
    )


async def _through(trial: Trial, ledger: Ledger, parallel: int, name: str, told: Told) -> list[Row]:
    """Every cell's measures, in the grid's order; a failure ends those still under way."""
    room, done, total = asyncio.Semaphore(parallel), 0, len(trial.cells)

    async def one(cell: Row) -> Row:
        nonlocal done
        found = ledger.find(cell)
        if found is None:
            async with room:
                found = await trial.look(cell)
                ledger.add(cell, found)
        done += 1
        told(f"{name}: {done} of {total}")
        return {**cell, **found}

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(cell)) for cell in trial.cells]
    except BaseExceptionGroup as several:
        raise _first(several) from None
    return [task.result() for task in tasks]


def _first(several: BaseExceptionGroup) -> BaseException:
    """What a person can mend, if there is any among them, else the first of all."""
    mendable = several.subgroup(KeifuError)
    error: BaseException = mendable or several
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def check_list(name: str, values: Sequence[float], low: float, high: float) -> None:
    """Refuse an empty list of an option, and values out of bounds (no number is in bounds)."""
    if not values:
        raise KeifuError(f"--{name} is empty: give values with commas, such as 1,2,4")
    for value in values:
        if not low <= value <= high:
            raise KeifuError(f"--{name} {value:g} is not allowed: from {low:g} to {high:g}")
    if len(set(values)) < len(values):
        raise KeifuError(f"--{name} has a value twice")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in name).lstrip(".") or "model"
