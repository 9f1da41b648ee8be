"""A local server that plays a vendor: it answers as told and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

Handler = BaseHTTPRequestHandler


@dataclass
class Seen:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class FakeServer:
    """Plays its answers in order, the last one again and again."""

    answers: list[Callable[[Handler], None]] = field(default_factory=list)
    requests: list[Seen] = field(default_factory=list)
    disconnected: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def say(self, *answers: Callable[[Handler], None]) -> None:
        self.answers = list(answers)
        self.requests.clear()

    @property
    def last(self) -> Seen:
        return self.requests[-1]

    @property
    def bodies(self) -> list[Any]:
        return [r.body for r in self.requests]

    def json(self, body: object, status: int = 200, **headers: str) -> Callable[[Handler], None]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()

        def answer(handler: Handler) -> None:
            handler.send_response(status)
            handler.send_header("content-type", "application/json")
            handler.send_header("content-length", str(len(raw)))
            for key, value in headers.items():
                handler.send_header(key.replace("_", "-"), value)
            handler.end_headers()
            handler.wfile.write(raw)

        return answer

    def stream(
        self, chunks: Iterable[bytes], pause: float = 0.0, kind: str = "text/event-stream"
    ) -> Callable[[Handler], None]:
        """Raw bytes, one write a chunk; the connection closes at the end."""
        wait = threading.Event()

        def answer(handler: Handler) -> None:
            handler.send_response(200)
            handler.send_header("content-type", kind)
            handler.send_header("connection", "close")
            handler.end_headers()
            try:
                for chunk in chunks:
                    handler.wfile.write(chunk)
                    handler.wfile.flush()
                    if pause:
                        wait.wait(pause)
            except (BrokenPipeError, ConnectionResetError):
                self.disconnected.set()

        return answer

    def sse(self, *events: Any, done: bool = False) -> Callable[[Handler], None]:
        """Events as JSON; (type, value) names the event; a str is sent as it is."""
        return self.stream([sse(e) for e in events] + ([b"data: [DONE]\n\n"] if done else []))


def sse(event: Any) -> bytes:
    name = b""
    if isinstance(event, tuple):
        name, event = f"event: {event[0]}\n".encode(), event[1]
    data = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
    return name + f"data: {data}\n\n".encode()
