"""HTTP for remote models: one background loop, retries, time and size limits, typed errors.

Every request runs as a task of one event loop in a daemon thread, so that synchronous and
asynchronous callers share connections and a cancelled request closes its own at once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import email.utils
import functools
import json
import os
import random
import re
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from keifu import __version__
from keifu.core.errors import KeifuError
from keifu.lm.errors import (
    AuthenticationError,
    RateLimited,
    RemoteContextLengthError,
    RemoteError,
    RemoteTimeout,
)
from keifu.lm.sse import Event, SSEParser

T = TypeVar("T")

MAX_RETRY_AFTER = 60.0
"""A server that asks for a longer wait than this is not waited for."""
MAX_ERROR_BYTES = 64 << 10

# How the vendors word it: "maximum context length is 4097 tokens. However, ... resulted in 5000",
# "prompt is too long: 210000 tokens > 200000 maximum", "token count (1048577) exceeds the maximum
# number of tokens allowed (1048576)". Group names say which number is which.
_TOO_LONG = (
    re.compile(r"maximum context length is (?P<context>\d+) tokens.*?(?P<prompt>\d+) tokens", re.S),
    re.compile(r"prompt is too long: (?P<prompt>\d+) tokens > (?P<context>\d+)"),
    re.compile(r"token count \((?P<prompt>\d+)\) exceeds .*?\((?P<context>\d+)\)", re.S),
)


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where a remote model is and how patiently to talk to it."""

    url: str
    """The API's root, no slash at its end; the user chose it, so a private address is fine."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret: str | None = field(default=None, repr=False)
    """The key, wiped from whatever the server says before anyone reads it."""
    timeout: float = 600.0
    """Seconds for one request with its retries and its whole answer."""
    retries: int = 2
    max_bytes: int = 64 << 20
    """Most bytes of one answer."""
    connections: int = 256
    """Most at once; further requests wait."""

    def __post_init__(self) -> None:
        """Refuse an address that is not plainly http(s)://host[:port]/path."""
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise KeifuError(f"{self.url!r} is not a URL: {error}") from None
        if url.userinfo:
            raise KeifuError("a model's URL may not hold a password: pass the key as api_key=")
        odd = not url.host or url.query or "\\" in self.url or (url.port or 0) > 65535
        if odd or url.scheme not in ("http", "https"):
            raise KeifuError(
                f"{self.url!r} is not the root of an HTTP API: give http(s)://host[:port]/path"
            )
        if not 0 < self.timeout < 1e6 or not 0 <= self.retries <= 20:
            raise KeifuError("timeout must be above 0 seconds, and retries from 0 to 20")


@functools.cache
def _loop(pid: int) -> asyncio.AbstractEventLoop:
    """The background loop of this process (a fork needs its own, hence `pid`)."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=f"keifu-remote-{pid}", daemon=True).start()
    return loop


_starting = threading.Lock()


def submit(work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Run a coroutine on the background loop; cancelling the future cancels it there."""
    with _starting:
        loop = _loop(os.getpid())
    return asyncio.run_coroutine_threadsafe(work, loop)


class Transport:
    """Requests to one API; its coroutines run on the background loop only (see `submit`)."""

    def __init__(self, connection: Connection, farewell: str = "") -> None:
        self.connection = connection
        self._farewell = farewell
        self._client: httpx.AsyncClient | None = None

    def __repr__(self) -> str:
        return f"Transport({self.connection.url!r})"

    async def json(
        self, method: str, path: str, body: object = None, *, root: str | None = None
    ) -> Any:
        """The decoded JSON answer to one request (below another root of the same server)."""
        async with self._deadline():
            response = await self._open(method, (root or self.connection.url) + path, body)
            try:
                raw = await self._read(response, self.connection.max_bytes)
            finally:
                await response.aclose()
        return self.decode(raw)

    async def events(
        self, path: str, body: object, headers: Mapping[str, str]
    ) -> AsyncGenerator[Event, None]:
        """The server-sent events that answer a POST; closing the iterator closes the connection."""
        async with self._deadline():
            response = await self._open("POST", self.connection.url + path, body, headers)
            try:
                kind = response.headers.get("content-type", "")
                if not kind.startswith("text/event-stream"):
                    raise RemoteError(f"{self._host} answered with {kind!r}, not an event stream")
                parser = SSEParser()
                async for chunk in self._chunks(response, self.connection.max_bytes):
                    for event in parser.feed(chunk):
                        yield event
            finally:
                await response.aclose()

    def decode(self, text: str | bytes) -> Any:
        """JSON that the server sent, or an error that says it is none."""
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            shown = self.clean(
                text[:80].decode(errors="replace") if isinstance(text, bytes) else text
            )
            raise RemoteError(f"{self._host} sent malformed JSON: {shown[:80]!r}") from None

    def clean(self, text: object) -> str:
        """A server's words on one line of at most 500 characters, without the key."""
        line = " ".join(str(text)[:4000].split())
        if self.connection.secret:
            line = line.replace(self.connection.secret, "***")
        return line if len(line) <= 500 else line[:499] + "…"

    def failure(self, status: int, body: Any, retry_after: float | None = None) -> KeifuError:
        """The typed error for an error body in any vendor's shape, {"error": {"message": ...}}."""
        detail = body[0] if isinstance(body, list) and body else body
        detail = detail.get("error", detail) if isinstance(detail, Mapping) else detail
        code = None
        if isinstance(detail, Mapping):
            named = detail.get("status") or detail.get("code") or detail.get("type")
            code = str(named)[:80] if named is not None else None
            detail = detail.get("message") or detail.get("detail") or detail
        said = self.clean(detail) or "no reason given"
        message = f"{self._host}: {said} (HTTP {status})" if status else f"{self._host}: {said}"
        if status == 404 and self._farewell:
            message += f"; {self._farewell}"
        if status in (401, 403):
            return AuthenticationError(message, status=status, code=code)
        if status == 429:
            return RateLimited(message, code=code, retry_after=retry_after)
        match = next((m for p in _TOO_LONG if (m := p.search(said))), None)
        if match or code == "context_length_exceeded":
            prompt, context = (int(match["prompt"]), int(match["context"])) if match else (0, 0)
            return RemoteContextLengthError(message, prompt, context)
        return RemoteError(message, status=status or None, code=code)

    async def aclose(self) -> None:
        """Close every connection; the next request opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    @property
    def _host(self) -> str:
        return httpx.URL(self.connection.url).netloc.decode()

    def _deadline(self) -> _Deadline:
        return _Deadline(self.connection.timeout, self._host)

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            # Identity, and raw bytes below: nothing decompresses, so sizes are what they seem.
            headers = {
                "user-agent": f"keifu/{__version__}",
                "accept-encoding": "identity",
                **self.connection.headers,
            }
            most = self.connection.connections
            limits = httpx.Limits(
                max_connections=most, max_keepalive_connections=max(16, most // 16)
            )
            timeout = httpx.Timeout(None, connect=min(10.0, self.connection.timeout))
            self._client = httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout)
        return self._client

    async def _open(
        self, method: str, url: str, body: object, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """A 2xx response with its body unread, after as many retries as allowed."""
        try:
            request = self._http().build_request(method, url, json=body, headers=headers)
        except ValueError as error:  # a lone surrogate, a NaN
            raise KeifuError(f"the request cannot be written as JSON: {error}") from None
        for attempt in range(self.connection.retries + 1):
            wait: float | None = None
            try:
                response = await self._http().send(request, stream=True)
            except httpx.TransportError as error:
                reason = self.clean(error) or type(error).__name__
                failed: KeifuError = RemoteError(f"cannot reach {self._host}: {reason}")
                again = True
            else:
                if response.is_success:
                    return response
                try:
                    raw = await self._read(response, MAX_ERROR_BYTES, cut=True)
                finally:
                    await response.aclose()
                wait = retry_after(response.headers)
                failed = self.failure(response.status_code, _maybe_json(raw), wait)
                again = should_retry(response.status_code, response.headers, wait)
            if not again or attempt == self.connection.retries:
                raise failed
            backoff = min(0.5 * 2**attempt, 8.0) * random.uniform(0.75, 1.0)
            await asyncio.sleep(backoff if wait is None else wait)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _read(self, response: httpx.Response, limit: int, cut: bool = False) -> bytes:
        """The whole body; past `limit` bytes an error, or just the start if `cut`."""
        body = bytearray()
        async for chunk in self._chunks(response, limit, cut):
            body += chunk
        return bytes(body)

    async def _chunks(
        self, response: httpx.Response, limit: int, cut: bool = False
    ) -> AsyncIterator[bytes]:
        coding = response.headers.get("content-encoding", "identity")
        if coding != "identity" and not cut:
            raise RemoteError(f"{self._host} compressed its answer ({coding}) unasked")
        size = 0
        try:
            async for chunk in response.aiter_raw():
                size += len(chunk)
                if size > limit:
                    if cut:
                        return
                    raise RemoteError(f"{self._host} sent more than {limit} bytes")
                yield chunk
        except httpx.TransportError as error:
            reason = self.clean(error) or type(error).__name__
            raise RemoteError(f"{self._host} broke off its answer: {reason}") from None


class _Deadline:
    """`asyncio.timeout` whose expiry is our error."""

    def __init__(self, seconds: float, host: str) -> None:
        self._seconds, self._host = seconds, host
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *exception: Any) -> None:
        try:
            await self._timeout.__aexit__(*exception)
        except TimeoutError:
            raise RemoteTimeout(
                f"{self._host} did not finish within {self._seconds:g} s: raise timeout="
            ) from None


def should_retry(status: int, headers: Mapping[str, str], wait: float | None) -> bool:
    """Whether to ask again: the server's x-should-retry if it says so, else by status."""
    if wait is not None and wait > MAX_RETRY_AFTER:
        return False
    said = headers.get("x-should-retry")
    if said in ("true", "false"):
        return said == "true"
    return status in (408, 409, 429) or status >= 500


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of Retry-After (a number or a date) or retry-after-ms; None if senseless."""
    text, scale = headers.get("retry-after-ms"), 1e-3
    if text is None:
        text, scale = headers.get("retry-after"), 1.0
    if text is None:
        return None
    try:
        seconds = float(text) * scale
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return seconds if 0 <= seconds < 1e9 else None


def _maybe_json(raw: bytes) -> Any:
    """An error body as JSON if it is that, else its text."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return raw.decode(errors="replace")
