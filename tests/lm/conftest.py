"""Fixtures of the remote tests: a fake vendor, and no keys of whoever runs them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.lm.fake_server import FakeServer, Seen


class Listener(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()

    class Play(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length", 0)))
            body = json.loads(raw) if raw else None
            headers = {k.lower(): v for k, v in self.headers.items()}
            fake.requests.append(Seen(self.command, self.path, headers, body))
            turn = min(len(fake.requests), len(fake.answers)) - 1
            fake.answers[turn](self)

        do_GET = do_POST

        def log_message(self, *args: object) -> None:
            pass

    httpd = Listener(("127.0.0.1", 0), Play)
    fake.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    yield fake
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the keys, the addresses or the proxies of whoever runs it."""
    for vendor in ("OPENAI", "ANTHROPIC", "GEMINI", "GOOGLE", "KEIFU"):
        monkeypatch.delenv(f"{vendor}_API_KEY", raising=False)
        monkeypatch.delenv(f"{vendor}_BASE_URL", raising=False)
    for name in ("GOOGLE_GEMINI_BASE_URL", "ANTHROPIC_AUTH_TOKEN", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
