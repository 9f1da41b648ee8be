"""What a build has finished, a line a chunk, so that a killed one goes on with the same result."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from keifu.core.errors import ConfigError, KeifuError

Looks = Sequence[Sequence[tuple[int, bytes]]]
"""For each corpus step: (number of the document, what it saw), in order."""


class Journal:
    """The growing output file of a build and the notes on its chunks, both in one folder.

    A chunk is done when its note is on the disk, which is after its documents are.
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any], *, restart: bool = False) -> None:
        """Open or begin.

        Raises:
            ConfigError: the folder was begun with another recipe (and is not to begin again).
            KeifuError: another build writes in it, or it cannot be written.
        """
        self.folder = folder
        self._notes, self._part = folder / "build.journal", folder / "documents.jsonl.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder)
            self.notes: BinaryIO = open(self._notes, "ab+")  # noqa: SIM115
            self.part = open(self._part, "ab+")  # noqa: SIM115
        except OSError as refused:
            raise KeifuError(f"cannot write in {folder}: {refused.strerror}") from refused
        self.done: list[dict[str, Any]] = []
        """What an earlier run noted of each chunk, but for what the corpus steps saw."""
        self.end = 0
        """Bytes of the output that are done."""
        try:
            self._begin(recipe, restart)
        except BaseException:
            self.close()
            raise

    def _begin(self, recipe: Mapping[str, Any], restart: bool) -> None:
        lines = [] if restart else list(_whole(self.notes))
        if lines:
            _same(lines[0], recipe, self.folder)
            size = self._part.stat().st_size
            for line in lines[1:]:
                if line["end"] <= size:
                    self.done.append(line)
        kept = 0 if not lines else sum(line["bytes"] for line in [lines[0], *self.done])
        self.notes.truncate(kept)
        self.end = int(self.done[-1]["end"]) if self.done else 0
        self.part.truncate(self.end)
        if not lines:
            self._note(dict(recipe))

    def add(self, documents: bytes, facts: Mapping[str, Any], looks: Looks) -> None:
        """A chunk is finished."""
        try:
            self.part.write(documents)
            self.part.flush()
            os.fsync(self.part.fileno())
            end = self.end + len(documents)
            self._note({**facts, "end": end, "looks": [_written(step) for step in looks]})
        except OSError as refused:
            raise KeifuError(
                f"cannot write in {self.folder}: {refused.strerror}: run it again, it goes on"
            ) from refused
        self.end = end

    def looks(self, chunk: int) -> Looks:
        """What the corpus steps saw of a chunk that an earlier run finished."""
        self.notes.seek(self.done[chunk]["at"])
        note = json.loads(self.notes.read(self.done[chunk]["bytes"]).partition(b" ")[2])
        return [
            [(number, base64.b64decode(seen)) for number, seen in step] for step in note["looks"]
        ]

    def finish(self) -> Path:
        """The output file under its own name; the notes are gone."""
        target = self.folder / "documents.jsonl"
        self.part.close()
        os.replace(self._part, target)
        self.notes.close()
        self._notes.unlink()
        self._release()
        return target

    def close(self) -> None:
        """Leave it to a later run."""
        for file in (self.part, self.notes):
            with contextlib.suppress(OSError):  # bytes that a full disk refused: no note has them
                file.close()
        self._release()

    def _release(self) -> None:
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def _note(self, note: Mapping[str, Any]) -> None:
        raw = json.dumps(note, separators=(",", ":")).encode()
        self.notes.write(hashlib.sha256(raw).hexdigest()[:16].encode() + b" " + raw + b"\n")
        self.notes.flush()
        os.fsync(self.notes.fileno())


def _written(step: Sequence[tuple[int, bytes]]) -> list[tuple[int, str]]:
    return [(number, base64.b64encode(seen).decode()) for number, seen in step]


def _locked(folder: Path) -> FileLock:
    lock = FileLock(folder / "build.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise KeifuError(f"another build writes in {folder}") from None
    return lock


def _whole(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """The notes up to the first that is not whole, each with its place and its length in bytes."""
    file.seek(0)
    at = 0
    for line in file:
        mark, _, raw = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n") or hashlib.sha256(raw).hexdigest()[:16].encode() != mark:
            return
        note = json.loads(raw)
        note.pop("looks", None)  # they may be large together, and are read one by one
        yield {**note, "at": at, "bytes": len(line)}
        at += len(line)


def _same(begun: Mapping[str, Any], recipe: Mapping[str, Any], folder: Path) -> None:
    told = json.loads(json.dumps(recipe))
    other = sorted(name for name in told if begun.get(name) != told[name])
    if other:
        raise ConfigError(
            f"{folder} was begun with other {', '.join(other)}: use the same, begin again with "
            "--restart, or name another folder"
        )
