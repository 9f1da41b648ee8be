"""`keifu serve` with a window into its process: `python -m benchmarks.soak_server FD FLAGS...`.

A line on standard input is answered by one line of JSON on file descriptor FD: what the engines
hold, and what Python does. The line `clear` makes the engines forget kept prefixes first; `trace`
and `grown` start tracemalloc and tell what has grown since.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import tracemalloc
from typing import Any

import keifu.lm
from keifu.cli.main import main

LOADED: list[Any] = []


def remember(load: Any) -> Any:
    """Keep what is loaded, so that it can be asked."""

    def loaded(*given: Any, **options: Any) -> Any:
        LOADED.append(load(*given, **options))
        return LOADED[-1]

    return loaded


def held() -> dict[str, Any]:
    """Tokens of state in use; threads by name; objects that the garbage collector follows."""
    engines = [lm.engine for lm in LOADED]
    return {
        "capacity": sum(e.pool.capacity for e in engines),
        "free": sum(e.pool.free_tokens for e in engines),
        "kept": sum(e.prefixes.tree.size for e in engines if e.prefixes.tree),
        "busy": sum(bool(e._queue) for e in engines),
        "threads": sorted(t.name for t in threading.enumerate()),
        "objects": len(gc.get_objects()),
    }


def grown(before: tracemalloc.Snapshot) -> list[str]:
    """Where Python's memory grew most since a snapshot."""
    gc.collect()
    now = tracemalloc.take_snapshot()
    return [str(line) for line in now.compare_to(before, "traceback")[:12]]


def answer(out: int) -> None:
    before: tracemalloc.Snapshot | None = None
    for line in sys.stdin:
        found: dict[str, Any] = {}
        if line.strip() == "clear":
            for lm in LOADED:
                lm.engine.call(lm.engine.prefixes.clear)
            gc.collect()
        elif line.strip() == "trace":
            tracemalloc.start(4)
            before = tracemalloc.take_snapshot()
        elif line.strip() == "grown" and before is not None:
            found = {"grown": grown(before)}
        os.write(out, (json.dumps(found or held()) + "\n").encode())


if __name__ == "__main__":
    keifu.lm.load = remember(keifu.lm.load)
    threading.Thread(target=answer, args=(int(sys.argv[1]),), daemon=True, name="window").start()
    sys.exit(main(["serve", *sys.argv[2:]]))
