"""The cells of a long run, written down as they are done, so that an interrupted one goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keifu.core.errors import FormatError, KeifuError
from keifu.evaluation.findings import Row

_MOST = 256 << 20
_LINE = 1 << 20


class Ledger:
    """One JSON line a finished cell, after a first line that says what the cells have in common.

    A line that a kill cut short is dropped. Without a path nothing is kept.

    Args:
        settings: what must be the same for cells of two runs to mean the same.

    Raises:
        KeifuError: the file cannot be written, or is of a run with other settings.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self.path, self._done = path, dict[str, Row]()
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open(path, json.loads(json.dumps(dict(settings), allow_nan=False)))
        except OSError as refused:
            raise KeifuError(f"cannot write {path}: {refused.strerror}") from refused

    def _open(self, path: Path, settings: Mapping[str, Any]) -> None:
        if not path.exists() or not path.stat().st_size:
            self._append({"settings": settings})
            return
        if path.stat().st_size > _MOST:
            raise FormatError(f"{path} has {path.stat().st_size} bytes, no ledger of ours has")
        whole = 0
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LINE), b"")):
                if not line.endswith(b"\n"):
                    break  # cut short: what follows is written over it
                self._read(number, line, settings)
                whole += len(line)
        if whole < path.stat().st_size:
            os.truncate(path, whole)
        if not whole:
            self._append({"settings": settings})

    def _read(self, number: int, line: bytes, settings: Mapping[str, Any]) -> None:
        try:
            record = json.loads(line)
            if number == 0:
                theirs = record["settings"]
            else:
                self._done[_key(record["cell"])] = dict(record["found"])
        except (ValueError, LookupError, TypeError) as wrong:
            raise FormatError(
                f"{self.path}, line {number + 1} is no finished cell: {wrong}"
            ) from None
        if number == 0 and theirs != settings:
            other = [k for k in {**theirs, **settings} if theirs.get(k) != settings.get(k)]
            raise KeifuError(
                f"{self.path} is of another run (other {', '.join(sorted(other))}): "
                "give another --out, or the same options"
            )

    def __len__(self) -> int:
        return len(self._done)

    def find(self, cell: Row) -> Row | None:
        """What was found in a cell before; None if it is still to be done."""
        return self._done.get(_key(cell))

    def add(self, cell: Row, found: Row) -> None:
        """Write down a cell; it is on the disk when this returns."""
        self._done[_key(cell)] = found
        if self.path is not None:
            self._append({"cell": dict(cell), "found": dict(found)})

    def _append(self, record: Mapping[str, Any]) -> None:
        assert self.path is not None
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as refused:
            raise KeifuError(f"cannot write {self.path}: {refused.strerror}") from refused


def _key(cell: Mapping[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)
