"""A server process: its socket, its first lines of output, and how it stops."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import time
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from keifu.core.errors import KeifuError
from keifu.server.app import build
from keifu.server.endpoint import Service
from keifu.server.protocol import Protocol
from keifu.server.settings import Access


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 picks a free one."""
    if not 0 <= port <= 65535:
        raise KeifuError(f"port {port} is not allowed: from 0 (any free one) to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # asyncio turns Nagle's delay (40 ms an answer) off only where the protocol is named.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
        return bound
    except OSError as error:
        reason = error.strerror or str(error)
        raise KeifuError(
            f"cannot listen on {host} port {port}: {reason}; choose another with --port, "
            "or --port 0 for any free one"
        ) from None


def access(
    host: str, key: str | None, insecure: bool, hosts: list[str], origins: list[str]
) -> Access:
    """Who may talk to a server on this host; an open door to the network needs a key."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        addresses = [ipaddress.ip_address(str(entry[4][0]).split("%")[0]) for entry in found]
    except OSError:
        raise KeifuError(f"--host {host!r} is no address or name of this machine") from None
    local = all(address.is_loopback for address in addresses)
    if not local and key is None and not insecure:
        raise KeifuError(
            f"--host {host} opens the server to the network: set --api-key (or KEIFU_API_KEY), "
            "or --insecure to serve everyone"
        )
    if key is not None and (len(key) < 8 or not key.isascii() or not key.isprintable()):
        raise KeifuError("the API key needs at least 8 printable ASCII characters")
    names = {"localhost", host.lower(), *(name.lower() for name in hosts)}
    return Access(
        key=key, hosts=frozenset(names), any_address=not local, origins=frozenset(origins)
    )


def greeting(bound: socket.socket, model: str, key: bool) -> str:
    """The URL, then a curl and an openai snippet that work as they are."""
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1" if bound.family == socket.AF_INET else "::1"
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    auth = '-H "Authorization: Bearer $KEIFU_API_KEY" ' if key else ""
    secret = 'os.environ["KEIFU_API_KEY"]' if key else '"none"'
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return f"""{url}

curl {url}/v1/chat/completions {auth}-H "Content-Type: application/json" \\
  -d '{body}'

{"import os" + chr(10) if key else ""}from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key={secret})
print(client.chat.completions.create(
    model="{model}", messages=[{{"role": "user", "content": "Hello"}}]
).choices[0].message.content)
"""


class Server(uvicorn.Server):
    """Uvicorn with a drain: the first signal refuses new work and lets the running end."""

    def __init__(self, app: ASGIApp, shared: Service) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=2,
            )
        )
        self.shared = shared
        self._signalled = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: leave at once."""
        if self._signalled:
            os._exit(128 + sig)
        self._signalled = time.monotonic()
        self.shared.gate.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: leave once nothing runs any more, or the drain took too long."""
        if self._signalled:
            spent = time.monotonic() - self._signalled
            if not self.shared.gate.admitted or spent > self.shared.limits.drain_seconds:
                self.should_exit = True
        return await super().on_tick(counter)


def serve(bound: socket.socket, shared: Service) -> None:
    """Serve until a signal; KeifuError if the first model cannot be loaded."""

    def loaded() -> None:
        if shared.models.failure is not None:
            server.should_exit = True

    server = Server(build(shared, loaded), shared)
    server.run(sockets=[bound])
    if (failure := shared.models.failure) is not None:
        raise failure
    print("stopped", file=sys.stderr)  # noqa: T201 (the last line of a terminal program)
