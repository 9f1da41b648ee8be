"""A run's folder: whose it is, the recipe, one line of metrics a step, the checkpoints.

recipe.yaml            what was run, to the last default
metrics.jsonl          a line a step; after a resume without a step twice or left out
checkpoints/step-N/    a Hugging Face folder, and state/ to go on from
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keifu.checkpoints import whole
from keifu.core.atomic import write_text
from keifu.core.errors import FormatError, KeifuError
from keifu.training.loop import Record

_log = logging.getLogger("keifu")
METRICS = "metrics.jsonl"
_HOLDER = "lock.json"
_FIELDS = tuple(field.name for field in dataclasses.fields(Record) if field.name != "found")
"""What watches found stands in a line under its own names."""


class RunFolder:
    """The folder of one run, which `locked` opens for its only writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held_out: dict[int, float] = {}
        """Held-out loss by the number of steps done."""
        (path / METRICS).touch()

    @property
    def recipe(self) -> Path:
        """The recipe that was run."""
        return self.path / whole.RECIPE

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after so many steps is."""
        return self.path / whole.CHECKPOINTS / f"step-{step}"

    def begun(self) -> bool:
        """Whether there is something here that a new run would lose."""
        return (self.path / METRICS).stat().st_size > 0 or bool(whole.steps(self.path))

    def log(self, record: Record, more: Mapping[str, Any] | None = None) -> None:
        """Add a step's line. `more`: what else is known of it ("held_out": {"loss": ...}).

        Raises:
            KeifuError: the disk is full or gone.
        """
        more = {**record.found, **(more or {})}
        line = {name: _told(getattr(record, name)) for name in _FIELDS} | _told(more)
        if "held_out" in more:
            self.held_out[record.step + 1] = float(more["held_out"]["loss"])
        try:
            with open(self.path / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as refused:
            raise self._refused(refused) from refused

    def sync(self) -> None:
        """Have all lines on the disk, as a checkpoint that comes after them needs."""
        try:
            with open(self.path / METRICS, "a", encoding="utf-8") as file:
                os.fsync(file.fileno())
        except OSError as refused:
            raise self._refused(refused) from refused

    def resumed(self, step: int) -> list[Record]:
        """The records before `step`; what is written of later ones, or of half a line, goes.

        A step that ran again after the guards went back counts as it was the last time.
        """
        lines: dict[int, dict[str, Any]] = {}
        with open(self.path / METRICS, encoding="utf-8") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue  # cut off when the process was killed
                if isinstance(line, dict) and isinstance(at := line.get("step"), int):
                    lines = lines if at not in lines else {k: lines[k] for k in lines if k < at}
                    if at < step:
                        lines[at] = line
        missing = [at for at in range(step) if at not in lines]
        if missing:
            _log.warning("%s lacks %d of %d steps, from step %d on",
                         self.path / METRICS, len(missing), step, missing[0])  # fmt: skip
        kept = [lines[at] for at in sorted(lines)]
        write_text(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
        self.held_out = {
            line["step"] + 1: _number(line["held_out"].get("loss"))
            for line in kept
            if isinstance(line.get("held_out"), dict)
        }
        return [_record(line, self.path) for line in kept]

    def prune(self, *, keep: int, best: bool, milestones: int | None) -> list[int]:
        """Delete checkpoints but the last `keep`, the best and each of `milestones` steps."""
        there = whole.steps(self.path)
        kept = set(list(there)[:keep])
        scored = {step: loss for step, loss in dict(self.held_out).items() if step in there}
        if best and scored:
            kept.add(min(scored, key=lambda step: (scored[step], step)))
        if milestones:
            kept |= {step for step in there if step % milestones == 0}
        return self._drop({step: path for step, path in there.items() if step not in kept})

    def forget(self, step: int) -> list[int]:
        """Delete checkpoints of more steps, and what was measured of them: the run went back."""
        self.held_out = {at: loss for at, loss in self.held_out.items() if at <= step}
        return self._drop({at: path for at, path in whole.steps(self.path).items() if at > step})

    def _drop(self, gone: Mapping[int, Path]) -> list[int]:
        for step, path in gone.items():
            hidden = path.with_name(f"tmp-old-step-{step}.{os.getpid()}")
            os.replace(path, hidden)
            shutil.rmtree(hidden, ignore_errors=True)
        return list(gone)

    def clear(self) -> None:
        """Remove what a process that was killed left half-made."""
        for left in (self.path / whole.CHECKPOINTS).glob("tmp-*"):
            shutil.rmtree(left, ignore_errors=True)

    def _refused(self, why: OSError) -> KeifuError:
        return KeifuError(f"cannot write {self.path / METRICS}: {why.strerror or why}")


@contextmanager
def locked(path: Path) -> Iterator[RunFolder]:
    """A run's folder, made if need be, of which this process is the only writer.

    The lock is the operating system's and ends with its process, however that ends.

    Raises:
        KeifuError: another process holds it (its pid and host are named), or it cannot be written.
    """
    import filelock

    try:
        (path / whole.CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path / ".lock")
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise KeifuError(
            f"{path} belongs to {_holder(path)}, which trains there: wait for it, stop it, or name "
            "another folder with --out"
        ) from None
    except OSError as refused:
        raise KeifuError(f"cannot write {path}: {refused.strerror or refused}") from refused
    try:
        if (path / _HOLDER).exists():
            _log.warning("%s was left by %s, which ended without a word", path, _holder(path))
        write_text(path / _HOLDER, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        folder = RunFolder(path)
        folder.clear()
        try:
            yield folder
        finally:
            (path / _HOLDER).unlink(missing_ok=True)
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """Who holds a folder, as far as it told."""
    try:
        told = json.loads((path / _HOLDER).read_text("utf-8"))
        return f"process {told['pid']} on {told['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _told(value: Any) -> Any:
    """A value as JSON has it: a number that is not finite is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _told(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_told(v) for v in value]
    return value


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _record(line: Mapping[str, Any], path: Path) -> Record:
    """The record of a line."""
    try:
        values = {name: line[name] for name in _FIELDS if name in line}
        for name in ("loss", "norm", "lr"):
            values[name] = _number(values[name])
        values["batches"] = tuple(values["batches"])
        values["metrics"] = {k: _number(v) for k, v in values["metrics"].items()}
        return Record(**values)
    except (KeyError, TypeError, ValueError, AttributeError) as bad:
        raise FormatError(f"{path / METRICS}: step {line['step']} is not understood") from bad
