"""A server process with a slow model, for tests of signals (arguments: SECONDS DRAIN)."""

from __future__ import annotations

import sys

from keifu.server.app import service
from keifu.server.models import Models, offers
from keifu.server.run import greeting, listen, serve
from keifu.server.settings import Limits
from tests.server.harness import FakeLM

if __name__ == "__main__":
    seconds, drain = float(sys.argv[1]), Limits(drain_seconds=float(sys.argv[2]))
    lm = FakeLM("fake", reply="x" * int(seconds / 0.02), delay=0.02)
    shared = service(Models(offers(["fake"]), lambda source: lm), limits=drain, strict=False)
    bound = listen("127.0.0.1", 0)
    print(greeting(bound, "fake", False), flush=True)
    serve(bound, shared)
