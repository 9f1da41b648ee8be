"""Two replicas of a slow fake model, as `keifu serve --replicas 2` runs them, for tests."""

from __future__ import annotations

import os

from keifu.server.app import service
from keifu.server.endpoint import Service
from keifu.server.models import Models, offers
from keifu.server.replicas import Fleet, serve_replicas
from keifu.server.run import listen
from keifu.server.settings import Limits
from tests.server.harness import FakeLM

LIMITS = Limits(parallel=2, queue=1, drain_seconds=20)


def make() -> Service:
    """One replica; its model is called by its process, so that /v1/models says which it is."""
    names = ["fake", f"pid-{os.getpid()}"]
    lm = FakeLM("fake", reply="x" * 100, delay=0.03)
    return service(Models(offers(names), lambda source: lm), limits=LIMITS, strict=False)


if __name__ == "__main__":
    from tests.server import fleet  # by its name, which a replica can import

    with listen("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
    two = Fleet(replicas=2, host="127.0.0.1", port=port, make=fleet.make, limits=LIMITS, cores=1)
    serve_replicas(two, f"http://127.0.0.1:{port}")
