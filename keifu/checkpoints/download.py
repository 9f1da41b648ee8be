"""Fetch one file over HTTP: resumed after a break, bounded, verified while it streams, atomic."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from keifu.core.errors import KeifuError

if TYPE_CHECKING:
    import ssl

    import httpx

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all); the total is 0 while it is unknown."""

LIMIT = 200 * 2**30
"""No single file may be larger, whatever the server says."""
ROOM = 64 * 2**20
"""Bytes that a download leaves free on the disk."""
_CHUNK = 2**20
_CONNECT, _READ = 4.0, 30.0  # seconds; a machine without network must say so within five
_STALLS = 3  # attempts in a row that bring no byte
_ATTEMPTS = 50


class _Stalled(Exception):
    """The server broke off or asked to try again; what came so far is kept."""


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    limit: int = LIMIT,
    progress: Progress | None = None,
) -> str:
    """Fetch `url` into `target` and return its sha256 in hex.

    Bytes go to `target` + ".part", which a later call continues with an HTTP range; the file takes
    its name only when it is whole and, where `sha256` is given, has that hash.

    Raises KeifuError when the server cannot be reached or refuses, the file is larger than `limit`
    or than the disk has room for, or the hash differs.
    """
    part = target.with_name(target.name + ".part")
    with _client(_READ) as client:
        resumed = _size(part) > 0
        digest = _fetch(client, url, part, limit, progress)
        if sha256 and digest != sha256 and resumed:  # an old part may belong to another file
            part.unlink()
            digest = _fetch(client, url, part, limit, progress)
    if sha256 and digest != sha256:
        part.unlink()
        raise KeifuError(
            f"{_shown(url)}: sha256 is {digest}, expected {sha256}; the file was thrown away: "
            "try again, and if it happens again the source has changed or is not to be trusted"
        )
    os.replace(part, target)
    return digest


def _fetch(
    client: httpx.Client, url: str, part: Path, limit: int, progress: Progress | None
) -> str:
    """Attempt until the file is whole, as long as attempts bring bytes."""
    import httpx

    stalls = 0
    for _ in range(_ATTEMPTS):
        before = _size(part)
        try:
            return _attempt(client, url, part, limit, progress)
        except (httpx.TransportError, _Stalled) as broken:
            reason = str(broken) or type(broken).__name__
            if isinstance(broken, (httpx.ConnectError, httpx.ConnectTimeout)) and not before:
                break
        except (httpx.InvalidURL, httpx.HTTPError) as wrong:
            raise KeifuError(f"cannot fetch {_shown(url)}: {wrong}") from wrong
        stalls = 0 if _size(part) > before else stalls + 1
        if stalls >= _STALLS:
            break
        time.sleep(0.2 * 2**stalls)
    kept = f"; {_size(part)} bytes are kept, pull again to continue" if _size(part) else ""
    raise KeifuError(
        f"cannot fetch {_shown(url)}: {reason}{kept} (check the network, a proxy in HTTPS_PROXY, "
        "or a certificate in SSL_CERT_FILE)"
    )


def _attempt(
    client: httpx.Client, url: str, part: Path, limit: int, progress: Progress | None
) -> str:
    """One request from where the part ends; the hash of the whole file."""
    done = _size(part)
    with client.stream("GET", url, headers={"Range": f"bytes={done}-"} if done else {}) as reply:
        if reply.status_code == 416 and reply.headers.get("Content-Range") == f"bytes */{done}":
            return file_sha256(part)  # it was whole already
        if reply.status_code == 416 or (done and reply.status_code == 206 and not _at(reply, done)):
            part.unlink()
            raise _Stalled("the server could not continue the file")
        if reply.status_code in (408, 429) or reply.status_code >= 500:
            raise _Stalled(f"the server answered {reply.status_code}")
        if reply.status_code not in (200, 206):
            raise KeifuError(f"cannot fetch {_shown(url)}: the server answered {reply.status_code}")
        if reply.status_code == 200:
            done = 0
        length = reply.headers.get("Content-Length", "")
        total = done + int(length) if length.isascii() and length.isdigit() else 0
        if total > limit:
            raise KeifuError(f"{_shown(url)} has {total} bytes; at most {limit} are accepted")
        check_room(part.parent, max(total - done, 0))
        digest = hashlib.sha256()
        with open(part, "r+b" if done else "wb") as file:
            for block in iter(lambda: file.read(_CHUNK) if done else b"", b""):
                digest.update(block)
            for block in reply.iter_raw():  # as it comes: what a break leaves is kept
                done += len(block)
                if done > limit:
                    raise KeifuError(f"{_shown(url)} is larger than the {limit} bytes accepted")
                digest.update(block)
                file.write(block)
                if progress:
                    progress(done, total)
            file.flush()
            os.fsync(file.fileno())
    if total and done != total:
        raise _Stalled(f"the connection closed after {done} of {total} bytes")
    return digest.hexdigest()


def remote_size(url: str) -> int:
    """Bytes that `url` will send, or 0 where the server does not say."""
    import httpx

    try:
        with _client(_CONNECT) as client:
            reply = client.head(url)
    except httpx.HTTPError:
        return 0
    length = reply.headers.get("Content-Length", "")
    return int(length) if reply.is_success and length.isascii() and length.isdigit() else 0


def fetch_text(url: str, limit: int, accept: str = "*/*") -> str | None:
    """A small text of at most `limit` bytes, or None where the server has none of that kind."""
    import httpx

    body = b""
    try:
        with _client(_READ) as client, client.stream("GET", url, headers={"Accept": accept}) as got:
            if not got.is_success or accept not in ("*/*", got.headers.get("Content-Type")):
                return None
            for block in got.iter_raw():
                body += block
                if len(body) > limit:
                    return None
    except httpx.HTTPError:
        return None
    return body.decode(errors="replace")


def check_room(folder: Path, needed: int) -> None:
    """Raise KeifuError unless the disk of `folder` holds `needed` more bytes and a little air."""
    free = shutil.disk_usage(folder).free
    if free < needed + ROOM:
        raise KeifuError(
            f"{folder} has {free / 1e6:.0f} MB free but {(needed + ROOM) / 1e6:.0f} MB are needed: "
            "free some space, or set KEIFU_HOME to a folder on another disk"
        )


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _client(read: float) -> httpx.Client:
    """A client that follows a few redirects and takes bytes as they are."""
    import httpx

    return httpx.Client(
        timeout=httpx.Timeout(read, connect=_CONNECT),
        follow_redirects=True,
        max_redirects=5,
        verify=_trusted(),
        headers={"Accept-Encoding": "identity", "User-Agent": "keifu"},
    )


def _trusted() -> ssl.SSLContext:
    """The system's certificates, the bundle that httpx brings, and what the user's settings add."""
    import ssl

    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT"):
        bundle = os.environ.get(variable)
        if bundle and os.path.isfile(bundle):
            context.load_verify_locations(bundle)
    return context


def _at(reply: httpx.Response, start: int) -> bool:
    """Whether a partial reply begins where we asked."""
    return bool(reply.headers.get("Content-Range", "").startswith(f"bytes {start}-"))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _shown(url: str) -> str:
    """The URL without credentials or query, for messages."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{parts.path}"
