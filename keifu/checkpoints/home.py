"""The folder of pulled models: where it is, what is in it, and how a model gets in whole.

`$KEIFU_HOME/models/<name>/` holds a model's files and its manifest `keifu.json`. KEIFU_HOME is by
default `$XDG_DATA_HOME/keifu`, that is `~/.local/share/keifu`. Folders that begin with a dot are
locks, downloads under way and models being put together.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from keifu.core.errors import KeifuError
from keifu.core.folders import data_folder, fallback_folder, is_own, writable_folder

_log = logging.getLogger("keifu")
_MANIFEST = "keifu.json"
_MANIFEST_BYTES = 2**20
_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?")
_DEVICES = {"con", "prn", "aux", "nul"} | {f"{d}{n}" for d in ("com", "lpt") for n in range(10)}
_LOCK_SECONDS = 3600


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model on this machine: one of the store, or (source "hub") of the Hugging Face cache."""

    name: str
    path: Path
    """What a loader opens: a file, or a checkpoint folder."""
    source: str
    """The reference that it was pulled by."""
    license: str | None = None
    size: int
    """Bytes on disk."""
    sha256: str | None = None
    """Of the largest file."""
    date: str | None = None
    """When it was pulled, in ISO 8601."""


def is_name(name: str) -> bool:
    """Whether a name may be a folder of the store: a lower-case ASCII slug, on every system."""
    return bool(_SLUG.fullmatch(name)) and name.split(".")[0] not in _DEVICES


def roots() -> list[Path]:
    """The folders where pulled models may be, the preferred one first; none need exist."""
    return [data_folder() / "models", fallback_folder() / "models"]


def writable_root() -> Path:
    """The folder for new models; a private temporary one where the home folder is read-only."""
    root, temporary = writable_folder("models")
    if temporary:
        _log.warning("cannot write %s; models go to %s", data_folder() / "models", root)
    return root


def find(name: str) -> Entry | None:
    """The whole model of this name, or None."""
    if not is_name(name):
        return None
    return next((entry for root in roots() if (entry := _read(root / name))), None)


def everything() -> dict[str, Entry]:
    """Every whole model of the store, by name."""
    names = {folder.name for root in roots() if root.is_dir() for folder in root.iterdir()}
    return {name: entry for name in sorted(names) if (entry := find(name))}


@contextmanager
def locked(root: Path, name: str) -> Iterator[None]:
    """Be the only process that puts `name` there; wait for another, and outlive a dead one.

    The lock is the operating system's, so it ends with the process that holds it, however that
    ends. Failures to write inside the block become KeifuErrors.
    """
    import filelock

    if not is_name(name):
        raise KeifuError(f"{name[:120]!r} is no name for a model: use a-z, 0-9, '.', '_' and '-'")
    try:
        (root / ".locks").mkdir(exist_ok=True)
        lock = filelock.FileLock(root / ".locks" / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            _log.warning("another process is at work on %s; waiting for it", name)
            lock.acquire(timeout=_LOCK_SECONDS)
        try:
            yield
        finally:
            lock.release()
    except filelock.Timeout as never:
        raise KeifuError(f"another process holds {never.lock_file}: stop it, then retry") from never
    except OSError as refused:
        full = refused.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if full else "check its permissions"
        raise KeifuError(
            f"cannot write the model store {root} ({refused.strerror or refused}): {remedy}, or "
            "set KEIFU_HOME to another folder"
        ) from refused


def staging(root: Path, name: str) -> Path:
    """An empty folder in which to put `name` together, under its lock."""
    folder = root / ".new" / name
    shutil.rmtree(folder, ignore_errors=True)  # of a process that died
    folder.mkdir(parents=True)
    return folder


def install(staged: Path, manifest: Mapping[str, object]) -> None:
    """Give a model its name in one step, in place of what may be left there, under its lock."""
    folder = staged.parent.parent / staged.name
    with open(staged / _MANIFEST, "w", encoding="utf-8") as file:
        json.dump({"schema_version": 1, "name": staged.name, **manifest}, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    if folder.exists():
        shutil.rmtree(folder)
    os.rename(staged, folder)


def remove(name: str) -> None:
    """Delete a model of the store, so that nobody ever sees half of it."""
    for root in roots():
        if is_name(name) and (root / name).is_dir():
            with locked(root, name):
                os.rename(root / name, staging(root, name) / "removed")
                shutil.rmtree(root / ".new" / name)


def _read(folder: Path) -> Entry | None:
    """The entry of a folder whose manifest's files are all there in full, or None."""
    manifest = folder / _MANIFEST
    top = folder.parent.parent
    if top == fallback_folder() and not (folder.exists() and is_own(top)):
        return None
    try:
        if manifest.stat().st_size > _MANIFEST_BYTES:
            return None
        said = json.loads(manifest.read_text(encoding="utf-8"))
        whole = all(
            (folder / name).resolve().is_relative_to(folder.resolve())
            and (folder / name).stat().st_size == size
            for name, size in said["files"].items()
        )
        path = folder if said["path"] == "." else folder / said["path"]
        if not whole or (path != folder and said["path"] not in said["files"]):
            return None
        return Entry(
            name=folder.name,
            path=path,
            source=said["source"],
            license=said["license"],
            size=said["size"],
            sha256=said["sha256"],
            date=said["date"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not ours, or spoilt: a pull puts it right
