"""Several engine processes behind one address: the same application as Ray Serve's replicas."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keifu.core.errors import KeifuError
from keifu.server.app import build
from keifu.server.endpoint import Service
from keifu.server.errors import log
from keifu.server.health import Report, report
from keifu.server.settings import Limits

APP = "keifu"
_SPARE = 16
"""Requests a replica takes beyond what its gate admits, so that the gate answers 429 itself."""

_PATIENCE = 2.0
"""Seconds in which every replica says what it counts."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """How many replicas there are, where they listen, and what each of them is."""

    replicas: int
    host: str
    port: int
    make: Callable[[], Service]
    """Makes one replica's models, gate and settings, in its own process; it is sent by pickle."""
    limits: Limits
    """The same that `make` gives, for what stands in front of the replicas."""
    cores: int
    """Processor cores of one replica."""


class Replica:
    """One engine process: it counts as ready once its first model is loaded."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, make: Callable[[], Service], replicas: int
    ) -> None:
        shared = make()
        await shared.models.start()
        if shared.models.failure is not None:
            raise RuntimeError(f"{_MARK}{shared.models.failure}{_MARK}")
        self._shared, self._replicas = shared, replicas

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Ray Serve's proxy passes requests to."""
        from ray import serve

        app = build(self._shared, everyone=self._everyone)
        return tagged(app, serve.get_replica_context().replica_id.unique_id)

    async def report(self) -> Report:
        """What this one says of itself; the others ask."""
        from ray import serve

        rank = serve.get_replica_context().rank.rank
        return report(self._shared, rank, self._replicas)

    async def _everyone(self) -> Sequence[Report]:
        """What all say; of those that do not answer in time, nobody does."""
        from ray import serve

        told = serve.get_deployment_handle(APP, APP).broadcast("report")
        try:
            found = await told.results_async(timeout_s=_PATIENCE, return_exceptions=True)
        except Exception:  # Ray's own: one hangs, or this one is on its way out
            log.warning("not all replicas answered", exc_info=True)
            found = []
        reports = [each for each in found if isinstance(each, Report)] or [await self.report()]
        return sorted(reports, key=lambda each: each.engine)

    def __del__(self) -> None:
        """Whoever is still here when the replica goes is told so."""
        self._shared.gate.draining = True


_MARK = "\x1e"
"""Around the one line of a failure that a user can mend, in what Ray makes of it."""


def tagged(app: ASGIApp, name: str) -> ASGIApp:
    """The application, whose answers say which replica gave them (x-replica)."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The proxy adds the request's id itself, the same one.
                kept = [pair for pair in message.get("headers", ()) if pair[0] != b"x-request-id"]
                head = [*kept, (b"x-replica", name.encode())]
                message = {**message, "headers": head}
            await send(message)

        await app(scope, receive, told)

    return call


@contextmanager
def deployed(fleet: Fleet) -> Iterator[None]:
    """The replicas, up and answering; afterwards drained and gone, with what Ray wrote.

    Raises:
        KeifuError: Ray is not installed, the cluster is too small or taken, a replica cannot load
            its model.
    """
    with _cluster(fleet) as cluster:
        from ray import serve

        if cluster.get("CPU", 0) < fleet.replicas * fleet.cores:
            raise KeifuError(
                f"{fleet.replicas} replicas of {fleet.cores} cores do not fit the cluster's "
                f"{cluster.get('CPU', 0):g}: fewer --replicas, or --threads"
            )
        gpus = min(1.0, cluster.get("GPU", 0) / fleet.replicas)
        limits = fleet.limits
        room = limits.parallel + limits.queue + _SPARE
        kind = serve.deployment(
            name=APP,
            num_replicas=fleet.replicas,
            ray_actor_options={"num_cpus": fleet.cores, "num_gpus": gpus},
            max_ongoing_requests=room,
            max_queued_requests=room,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=limits.drain_seconds,
            health_check_period_s=1.0,
            max_constructor_retry_count=1,
        )(serve.ingress()(Replica))
        http = {
            "host": fleet.host,
            "port": fleet.port,
            "request_timeout_s": limits.deadline + limits.grace + limits.body_seconds,
        }
        try:
            serve.start(http_options=http, proxy_location="HeadOnly")
            try:
                serve.run(kind.bind(fleet.make, fleet.replicas), name=APP, route_prefix="/")
            except RuntimeError as error:
                raise KeifuError(_reason(str(error))) from None
            yield
        finally:
            if APP in serve.status().applications:
                serve.delete(APP)  # drains: the proxy stays until nothing runs any more
            serve.shutdown()  # type: ignore[no-untyped-call]


def _reason(text: str) -> str:
    """The line that a user can mend, out of a deployment's failure."""
    parts = text.split(_MARK)
    said = parts[1] if len(parts) > 2 else " ".join(text.split())[-500:]
    return f"a replica cannot start: {said}"


@contextmanager
def _cluster(fleet: Fleet) -> Iterator[dict[str, float]]:
    """A Ray cluster: the one RAY_ADDRESS names, else one of this machine's for as long as this."""
    given = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
    if not given and "RAY_AUTH_MODE" not in os.environ:
        # A token of its own keeps the machine's other users out, and Ray out of ~/.ray; it must be
        # there before the import, which reads it.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
        from ray import serve as _  # noqa: F401 (the extra needs both)
    except ImportError:
        raise KeifuError("replicas need Ray Serve: pip install 'keifu[serve,ray]'") from None
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    folder = None
    try:
        if given:
            ray.init(given, **common)
            _refuse_taken(ray)
        else:
            folder = tempfile.mkdtemp(prefix="keifu-")
            cores = max(os.cpu_count() or 1, fleet.replicas * fleet.cores)
            ray.init("local", num_cpus=cores, include_dashboard=False, _temp_dir=folder, **common)
        yield ray.cluster_resources()  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _refuse_taken(ray: Any) -> None:
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return
    raise KeifuError("Ray Serve runs on this cluster already: `serve shutdown` ends it")


def serve_replicas(fleet: Fleet, greeting: str) -> None:
    """Serve until a signal, then let running requests end; a second signal leaves at once."""
    leave = threading.Event()

    def signalled(sig: int, frame: FrameType | None) -> None:
        if leave.is_set():
            os._exit(128 + sig)  # Ray's own processes end with this one
        leave.set()

    with deployed(fleet):
        old = {sig: signal.signal(sig, signalled) for sig in (signal.SIGINT, signal.SIGTERM)}
        print(greeting, flush=True)  # noqa: T201 (the first line of a terminal program)
        leave.wait()
    for sig, handler in old.items():
        signal.signal(sig, handler)
    print("stopped", file=sys.stderr)  # noqa: T201
