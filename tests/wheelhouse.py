"""A package index on this machine: wheels made in a moment, served well or badly."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


def wheel(folder: Path, dist: str, version: str, files: dict[str, bytes], **options) -> Path:
    """A wheel that pip accepts, with these files in it."""
    stem = f"{dist.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\nLicense: MIT\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{stem}.dist-info/METADATA", metadata)
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path


class Index:
    """The server. `breaks`: for each wheel we ask for, how many bytes it sends at most.

    `ranges` and `breaks` are of our own requests; of a wheel that pip asks for it sends the first
    bytes and then nothing more until `pip_waits` is cleared.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self.ranges: list[str | None] = []
        self.breaks: list[int] = []
        self.ignore_ranges = False
        self.pip_waits = True
        self.before_wheel = threading.Event()
        self.before_wheel.set()
        index = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                index.serve(self)

            def do_HEAD(self) -> None:
                index.serve(self, head=True)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def serve(self, request: BaseHTTPRequestHandler, head: bool = False) -> None:
        name = request.path.rsplit("/", 1)[-1]
        agent = "keifu" if "keifu" in request.headers["User-Agent"] else "pip"
        self.requests.append(f"{agent} {request.command} {request.path}")
        if request.path.startswith("/simple/"):
            dist = request.path.split("/")[2].replace("-", "_")
            body = "".join(self.link(path) for path in self.folder.glob(f"{dist}-*.whl"))
            answer(request, 200, f"<!DOCTYPE html><html><body>{body}</body></html>".encode())
        elif name.endswith(".metadata"):
            answer(request, 200, metadata_of(self.folder / name.removesuffix(".metadata")))
        elif (self.folder / name).is_file():
            self.send_wheel(request, (self.folder / name).read_bytes(), head)
        else:
            answer(request, 404, b"")

    def link(self, path: Path) -> str:
        """A line of the index page, which offers the wheel's metadata too."""
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        about = hashlib.sha256(metadata_of(path)).hexdigest()
        return (
            f'<a href="/files/{path.name}#sha256={sha256}" '
            f'data-core-metadata="sha256={about}" data-dist-info-metadata="sha256={about}">'
            f"{path.name}</a>"
        )

    def send_wheel(self, request: BaseHTTPRequestHandler, content: bytes, head: bool) -> None:
        if head:
            return answer(request, 200, b"", {"Content-Length": str(len(content))})
        if "keifu" not in request.headers["User-Agent"]:
            return self.send_to_pip(request, content)
        self.before_wheel.wait()
        wanted = request.headers.get("Range")
        self.ranges.append(wanted)
        start, headers = 0, {}
        if wanted and not self.ignore_ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(content):
                return answer(request, 416, b"", {"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        headers["Content-Length"] = str(len(body))
        send = self.breaks.pop(0) if self.breaks else len(body)
        answer(request, 206 if start else 200, body[:send], headers)
        if send < len(body):
            request.close_connection = True
        return None

    def send_to_pip(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        answer(request, 200, content[:10], {"Content-Length": str(len(content))})
        while self.pip_waits:
            time.sleep(0.05)
        with contextlib.suppress(OSError):  # pip was ended
            request.wfile.write(content[10:])


def answer(request: BaseHTTPRequestHandler, code: int, body: bytes, headers: dict | None = None):
    request.send_response(code)
    sent = {"Content-Type": "text/html", "Content-Length": str(len(body)), **(headers or {})}
    for name, value in sent.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)


def metadata_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return archive.read(name)


def isolate(monkeypatch: pytest.MonkeyPatch, home: Path, **settings: str) -> None:
    """No model, index or network of the machine that runs the tests."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "KEIFU_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "XDG_")):
            monkeypatch.delenv(name)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    values = {
        "HOME": home / "home",
        "KEIFU_HOME": home / "keifu",
        "HF_HOME": home / "hf",
        "TMPDIR": home / "tmp",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
    }
    (home / "home").mkdir(parents=True)
    (home / "tmp").mkdir()
    for name, value in {**values, **settings}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("tempfile.tempdir", str(home / "tmp"))
