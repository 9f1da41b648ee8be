"""Server-sent events: framing, keep-alive while silent, an end to readers that do not read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.types import Send

from keifu.server.errors import ApiError, log
from keifu.server.settings import Limits


def data(value: dict[str, Any], event: str | None = None) -> str:
    """One event; JSON keeps it on one line whatever the text holds."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n"


DONE = "data: [DONE]\n\n"
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


@dataclass(frozen=True)
class Events:
    """A streamed answer: its events, and how its dialect says that something failed."""

    items: AsyncGenerator[str, None]
    ping: str = ": ping\n\n"
    failed: Callable[[int, dict[str, Any]], str] = lambda status, body: data(body)


async def send_events(
    send: Send,
    events: Events,
    headers: dict[str, str],
    limits: Limits,
    explain: Callable[[BaseException], tuple[int, dict[str, Any]]],
) -> None:
    """Send the events as they come.

    Nothing is sent before the first event or the first ping, so that what fails early (a prompt
    that is too long) still is a proper error status. What fails later is an event, then the end.
    """
    out = _Writer(send, headers, limits.write_seconds)
    async with aclosing(events.items) as items:
        try:
            while True:
                step = asyncio.ensure_future(anext(items, None))
                try:
                    while not (await asyncio.wait({step}, timeout=limits.ping_seconds))[0]:
                        await out.write(events.ping)
                finally:
                    if not step.done():  # leave no step behind that still uses the generator
                        step.cancel()
                        await asyncio.wait({step})
                item = step.result()
                if item is None:
                    break
                await out.write(item)
        except SlowReader:
            log.warning("a reader took nothing for %g s and was dropped", limits.write_seconds)
            raise
        except Exception as error:
            if not out.started:
                raise
            await out.write(events.failed(*explain(error)))
    await out.end()


class SlowReader(ApiError):
    """The client took nothing from its socket for too long."""

    def __init__(self) -> None:
        super().__init__(408, "the client stopped reading")


class _Writer:
    """Sends pieces, each within a time; uvicorn's own buffer bounds how much is in flight."""

    def __init__(self, send: Send, headers: dict[str, str], seconds: float) -> None:
        self._send, self._headers, self._seconds, self.started = send, headers, seconds, False

    async def write(self, text: str) -> None:
        if not self.started:
            self.started = True
            raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in self._headers.items()]
            await self._send({"type": "http.response.start", "status": 200, "headers": raw})
        await self._body(text.encode("utf-8", "replace"), True)

    async def end(self) -> None:
        await self._body(b"", False)

    async def _body(self, body: bytes, more: bool) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except TimeoutError:
            raise SlowReader from None
