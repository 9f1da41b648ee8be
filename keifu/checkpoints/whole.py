"""Folders that are whole or not there: hashed, put in place by one rename, checked when opened.

A run's folder holds `checkpoints/step-N`, each a Hugging Face folder with a manifest of its files'
sizes and sha256. One is put together as `tmp-...` and renamed when every byte is on the disk, so a
process that is killed, or a disk that fills, leaves the earlier ones as they were.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from keifu.checkpoints.download import file_sha256
from keifu.checkpoints.source import read_json
from keifu.core.atomic import write_text
from keifu.core.errors import FormatError, KeifuError

_log = logging.getLogger("keifu")
MANIFEST = "manifest.json"
RECIPE = "recipe.yaml"
CHECKPOINTS = "checkpoints"
_MANIFEST_BYTES = 16 << 20
_STEP = re.compile(r"step-(\d{1,15})")
_sound: dict[Path, tuple[tuple[str, int, int], ...]] = {}
"""Folders that were hashed in this process, with the sizes and times of their files then."""
_warned: set[tuple[Path, str]] = set()


def publish(target: Path, make: Callable[[Path], None]) -> None:
    """Have `make` fill a new folder; it becomes `target` when it is on the disk, or is gone.

    Raises:
        KeifuError: it cannot be written; `target` is as it was.
    """
    made = target.with_name(f"tmp-{target.name}.{os.getpid()}")
    try:
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        make(made)
        _seal(made)
        if target.exists():  # a damaged one, or one that a resumed run comes to again
            old = target.with_name(f"tmp-old-{target.name}.{os.getpid()}")
            os.replace(target, old)
            os.replace(made, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(made, target)
        _sync(target.parent)
    except OSError as refused:
        raise KeifuError(f"cannot write {target}: {refused.strerror or refused}") from refused
    finally:
        shutil.rmtree(made, ignore_errors=True)


def fault(folder: Path) -> str | None:
    """What is wrong with a published folder, or None: every byte is hashed, once a process."""
    try:
        said = read_json(folder / MANIFEST, _MANIFEST_BYTES).get("files")
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, FormatError) as bad:
        return f"{MANIFEST} cannot be read: {bad}"
    if not isinstance(said, dict) or not all(isinstance(v, dict) for v in said.values()):
        return f"{MANIFEST} does not list files"
    seen: list[tuple[str, int, int]] = []
    for name, facts in said.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            return f"{name} is missing"
        found = path.stat()
        if found.st_size != facts.get("bytes"):
            return f"{name} has {found.st_size} bytes, not {facts.get('bytes')}"
        seen.append((name, found.st_size, found.st_mtime_ns))
    key = folder.resolve()
    if _sound.get(key) == tuple(seen):
        return None
    for name, facts in said.items():
        if file_sha256(folder / name) != facts.get("sha256"):
            return f"{name} is not what was written (its sha256 differs)"
    _sound[key] = tuple(seen)
    return None


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a training run."""
    return (folder / CHECKPOINTS).is_dir() and (folder / RECIPE).is_file()


def steps(run: Path) -> dict[int, Path]:
    """A run's checkpoints by the number of steps done, the latest first; none is looked into."""
    folder = run / CHECKPOINTS
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    found = {int(match[1]): folder / name for name in names if (match := _STEP.fullmatch(name))}
    return dict(sorted(found.items(), reverse=True))


def latest_whole(run: Path) -> Path | None:
    """The latest checkpoint that is as it was written, or None; a warning for each that is not."""
    for step, folder in steps(run).items():
        bad = fault(folder)
        if bad is None:
            return folder
        if (folder, bad) not in _warned:
            _warned.add((folder, bad))
            _log.warning("the checkpoint of step %d is damaged: %s: %s", step, folder, bad)
    return None


def _seal(folder: Path) -> None:
    """Write the manifest, and have everything on the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    listed = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        for path in files
    }
    text = json.dumps({"schema_version": 1, "files": listed}, indent=1)
    write_text(folder / MANIFEST, text + "\n")
    for inner in (path for path in folder.rglob("*") if path.is_dir()):
        _sync(inner)
    _sync(folder)


def _sync(path: Path) -> None:
    """What is written of a file or folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
