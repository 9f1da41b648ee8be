"""The door: who may talk to the server, and a proper answer to whatever is raised inside."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keifu.server.errors import ApiError, log, render, translate
from keifu.server.settings import Access

OPEN_ROUTES = frozenset({"/health", "/ping"})
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Guard:
    """Checks host, origin and key before anything else; adds the request id; answers errors."""

    def __init__(self, app: ASGIApp, access: Access, answered: Callable[[ApiError], None]) -> None:
        """`answered` hears of every error that was an answer."""
        self._app, self._access, self._answered = app, access, answered
        self._key = _digest(access.key) if access.key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: pass on what is allowed."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        scope["app"] = self  # makes the router raise what it cannot find instead of answering
        began, status = time.monotonic(), 0
        origin = headers.get("origin", "")

        async def wrapped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                found = MutableHeaders(scope=message)
                found["x-request-id"] = request_id
                found["x-content-type-options"] = "nosniff"
                found["openai-processing-ms"] = str(round((time.monotonic() - began) * 1000))
                if origin in self._access.origins:
                    found["access-control-allow-origin"] = origin
                    found["access-control-expose-headers"] = "x-request-id, x-ignored-params"
                    found.add_vary_header("Origin")
            await send(message)

        try:
            self.check(scope["method"], scope["path"], headers)
            if scope["method"] == "OPTIONS" and origin in self._access.origins:
                await JSONResponse({}, headers=PREFLIGHT)(scope, receive, wrapped)
            else:
                await self._app(scope, receive, wrapped)
        except Exception as raised:
            error = translate(raised, request_id, scope["path"])
            if not status:
                self._answered(error)
                code, body = render(error, scope["path"])
                answer = JSONResponse(body, status_code=code, headers=error.headers())
                await answer(scope, receive, wrapped)
            else:
                status = error.status
        finally:
            spent = (time.monotonic() - began) * 1000
            path = ascii(scope["path"][:200])[1:-1]
            log.info("%s %s %s %.0f ms %s", scope["method"], path, status, spent, request_id)

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raise 403 for a foreign host or origin, 401 for a missing or wrong key."""
        host = headers.get("host", "")
        if not self._known_host(host):
            raise ApiError(403, "this host name is not served here; --allow-host NAME allows it")
        origin = headers.get("origin")
        if origin is not None and origin not in self._access.origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or parts.netloc.lower() != host.lower():
                raise ApiError(403, "web pages of this origin may not call; see --allow-origin")
        elif origin is None and method != "GET" and headers.get("sec-fetch-site") == "cross-site":
            raise ApiError(403, "web pages of other sites may not call")
        if method == "OPTIONS" and origin in self._access.origins:
            return  # a browser sends no key when it asks whether it may send one
        if self._key is not None and path not in OPEN_ROUTES and not self._has_key(headers):
            text = "the API key is missing or wrong: send authorization: Bearer KEY"
            raise ApiError(401, text, code="invalid_api_key")

    def _known_host(self, header: str) -> bool:
        """A rebound name is a name: loopback addresses are safe, foreign names are not."""
        try:
            name = (urlsplit(f"//{header}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name in self._access.hosts:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._access.any_address or address.is_loopback

    def _has_key(self, headers: Headers) -> bool:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", ""), bearer.strip() if kind.lower() == "bearer" else ""]
        assert self._key is not None
        first, second = (hmac.compare_digest(_digest(key), self._key) for key in given)
        return first or second


PREFLIGHT: dict[str, Any] = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "authorization, content-type, x-api-key, x-request-id",
    "access-control-max-age": "600",
}


def _digest(key: str) -> bytes:
    """Equal lengths, so that a comparison takes the same time whatever was sent."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
