"""What a server may be told: limits of time, size and number, and who may talk to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Compat = Literal["vllm", "none"]
"""Under whose names /metrics has its numbers besides our own."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds that keep one client from starving the others."""

    parallel: int = 4
    """Generations that run at once."""
    queue: int = 64
    """Requests that may wait beyond those; one more is answered 429 at once."""
    deadline: float = 600.0
    """Seconds a request may take; what is ready then is the answer, with finish "length"."""
    grace: float = 10.0
    """Seconds after the deadline for the model to stop before the request is given up."""
    body_bytes: int = 10 * 2**20
    """Largest request body."""
    body_seconds: float = 30.0
    """Longest a body may take to arrive."""
    depth: int = 64
    """Deepest nesting of lists and objects in a body."""
    ping_seconds: float = 15.0
    """A silent stream sends a keep-alive this often."""
    write_seconds: float = 30.0
    """A reader that takes nothing for this long is dropped."""
    drain_seconds: float = 30.0
    """Longest that running requests may go on after the first SIGTERM or SIGINT."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may talk to the server."""

    key: str | None = None
    """Asked of every route but /health and /ping, as a bearer token or x-api-key."""
    hosts: frozenset[str] = frozenset({"localhost"})
    """Names accepted in the Host header besides loopback addresses (lower case, no port)."""
    any_address: bool = False
    """Accept every numeric address in the Host header (a server that listens on all of them)."""
    origins: frozenset[str] = frozenset()
    """Web pages of other origins that may call, such as http://localhost:3000."""
