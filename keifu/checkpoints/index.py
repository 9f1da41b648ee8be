"""Where a package index keeps a wheel: asked of pip, under the user's own settings.

pip knows the user's indexes, mirrors, proxies and certificates, so it does the finding: a dry run
with a report. Before version 25.3 it also downloads the whole wheel in a dry run; such a run is
ended as soon as its log shows the link and the download begins, since our own download resumes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from keifu.checkpoints.download import fetch_text
from keifu.core.errors import KeifuError

_SECONDS = 600
_POLL = 0.05
_PAGE_BYTES, _METADATA_BYTES = 32 * 2**20, 2**20
_LINK = re.compile(r"  Found link (\S+?\.whl)(#\S*)? \(from (\S+)\).*, version: (\S+)$", re.M)


@dataclass(frozen=True)
class Located:
    """A wheel on an index; hash and licence are None where the index does not tell."""

    url: str
    sha256: str | None
    license: str | None

    @property
    def file(self) -> Path | None:
        """The wheel itself where the index is a folder of this machine."""
        parts = urlsplit(self.url)
        return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def locate(dist: str, version: str) -> Located:
    """Find one wheel. Runs no code of it.

    Raises KeifuError: within five seconds where the index cannot be reached, patient with one
    that is there but slow.
    """
    wanted = f"{dist}=={version}"
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder, "report.json"), Path(folder, "log.txt")
        for seconds in (4, 20):
            code, said = _dry_run(wanted, report, log, seconds)
            if code == 0 or "Read timed out" not in said:
                break
        if early := _downloading(said, version):
            return _described(*early)
        if code != 0:
            raise _not_found(wanted, said)
        (found,) = json.loads(report.read_bytes())["install"]
    info, about = found["download_info"], found["metadata"]
    if _canonical(about["name"]) != _canonical(dist):
        raise KeifuError(f"the index answered {about['name']} when asked for {wanted}")
    hashes = info.get("archive_info", {}).get("hashes", {})
    return Located(info["url"], hashes.get("sha256"), _license(about))


def _dry_run(wanted: str, report: Path, log: Path, seconds: int) -> tuple[int | None, str]:
    """Have pip report what it would install: its exit code (None: ended early) and its words."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet"]
    command += ["--ignore-installed", "--ignore-requires-python", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--retries", "0"]
    command += ["--timeout", str(seconds), "--report", str(report), "--log", str(log), "--", wanted]
    quick = {"RES_OPTIONS": "timeout:2 attempts:1", "PIP_REQUIRE_VIRTUALENV": "0"}
    version = wanted.split("==")[1]
    errors = log.with_name("errors.txt")
    with open(errors, "wb") as sink:
        process = subprocess.Popen(
            command,
            env={**os.environ, **quick, "PIP_PROGRESS_BAR": "off"},
            cwd=_standing() or log.parent,  # pip dies in a folder that is gone
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=sink,
        )
        try:
            deadline = time.monotonic() + _SECONDS
            while (code := process.poll()) is None and not _downloading(_read(log), version):
                if time.monotonic() > deadline:
                    raise KeifuError(f"pip did not find {wanted} within {_SECONDS} s")
                time.sleep(_POLL)
        finally:
            process.kill()
            process.wait()
    return code, _read(log) + _read(errors)


def _downloading(log: str, version: str) -> tuple[str, str, str] | None:
    """(url, fragment, page) of the one wheel of this version, once pip begins to download it."""
    links = [link for link in _LINK.findall(log) if link[3] == version]
    if len(links) != 1 or "****" in links[0][0]:  # a choice, or a password, that pip alone knows
        return None
    url, fragment, page, _ = links[0]
    name = url.rsplit("/", 1)[-1]
    names = f"{re.escape(name)}|{re.escape(unquote(name))}"
    begun = re.search(rf'(?:Downloading|"GET) \S*?(?:{names})[\s?#]', log)
    return (url, fragment, page) if begun else None


def _described(url: str, fragment: str, page: str) -> Located:
    """What the index says of a link: the hash in its fragment or on its page, and the licence."""
    match = re.search(r"sha256=([0-9a-f]{64})", fragment)
    sha256 = match[1] if match else None
    if not sha256:
        listed = json.loads(
            fetch_text(page, _PAGE_BYTES, "application/vnd.pypi.simple.v1+json") or "{}"
        )
        hashes = {file["url"]: file["hashes"] for file in listed.get("files", [])}
        sha256 = hashes.get(url, {}).get("sha256")
    message = Parser().parsestr(fetch_text(f"{url}.metadata", _METADATA_BYTES) or "", True)
    about: dict[str, object] = {
        "license_expression": message.get("License-Expression"),
        "license": message.get("License"),
        "classifier": message.get_all("Classifier"),
    }
    return Located(url, sha256, _license(about))


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


def _license(about: Mapping[str, object]) -> str | None:
    """A wheel's licence: the SPDX expression, a short licence field, or its classifier."""
    for key in ("license_expression", "license"):
        value = about.get(key)
        if isinstance(value, str) and 0 < len(value) <= 80 and "\n" not in value:
            return value
    lines = about.get("classifier")
    classifiers = [str(line) for line in lines] if isinstance(lines, list) else []
    named = [line for line in classifiers if line.startswith("License :: ")]
    return named[0].rsplit(" :: ", 1)[-1] if named else None


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _standing() -> str | None:
    """The current folder, or None if it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return None


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
