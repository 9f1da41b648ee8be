"""Half an hour of mixed requests to `keifu serve`: does anything grow, is everything given back?

Clients of all kinds (soak_clients) ask a real server (soak_server) more than it can take at once.
Its memory, threads, files and sockets and what its engine holds are sampled. Memory must not grow
over the second half; at the end all state must be free, and all else as it was at half time,
when nobody asked either.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.soak_clients import Clients
from keifu.core.machine import threads as cores
from keifu.evaluation.plot import blank, save
from keifu.lm.serving import Serving

CLIENTS, PARALLEL, QUEUE = 14, 4, 8
CONTEXT, STATE = 2048, "64MB"
"""So little state that prefixes soon fill it: what comes after would be growth."""
EVERY, BLOCK = 5.0, 30.0
"""Seconds between samples; of samples that count as one."""
BOUND = 0.25e6
"""Bytes a minute: the most that memory may grow, at the upper end of the slope's 95 % interval."""
PANELS = {
    "memory": 1e6,
    "children's memory": 1e6,
    "kept": 1,
    "threads": 1,
    "files": 1,
    "requests": 1,
}
SAME = ("threads", "files", "sockets", "children")


def slope(xs: Sequence[float], ys: Sequence[float], z: float = 1.96) -> tuple[float, float, float]:
    """Theil and Sen's slope (the median of all pairs') with its interval (Sen 1968, eq. 2.6)."""
    rises = sorted(
        (ys[j] - ys[i]) / (xs[j] - xs[i])
        for i in range(len(xs))
        for j in range(i + 1, len(xs))
        if xs[j] != xs[i]
    )
    n, pairs = len(xs), len(rises)
    wide = z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(round((pairs - wide) / 2), 0)
    high = min(round((pairs + wide) / 2), pairs - 1)
    return statistics.median(rises), rises[low], rises[high]


def blocks(samples: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Minutes and means of blocks of samples: neighbours are too alike to count each."""
    found: dict[int, list[Mapping[str, float]]] = {}
    for sample in samples:
        found.setdefault(int(sample["seconds"] // BLOCK), []).append(sample)
    rows = list(found.values())
    return (
        [statistics.fmean(s["seconds"] for s in row) / 60 for row in rows],
        [statistics.fmean(s[name] for s in row) for row in rows],
    )


class Watched:
    """A server under observation."""

    def __init__(self, model: Path, threads: int) -> None:
        read, write = os.pipe()
        flags = ["-m", str(model), "--alias", "default", "--port", "0", "--ctx", str(CONTEXT)]
        flags += ["--parallel", str(PARALLEL), "--queue", str(QUEUE), "--max-memory", STATE]
        command = [sys.executable, "-m", "benchmarks.soak_server", str(write), *flags]
        self.server = Serving(
            [*command, "--threads", str(threads)], stdin=subprocess.PIPE, pass_fds=(write,)
        )
        os.close(write)
        self._answers = os.fdopen(read)
        self._process = psutil.Process(self.server.process.pid)
        self.began = time.monotonic()

    def ask(self, word: str = "") -> dict[str, Any]:
        """What the engine holds (see soak_server)."""
        stdin = self.server.process.stdin
        assert stdin is not None
        stdin.write(word + "\n")
        stdin.flush()
        found: dict[str, Any] = json.loads(self._answers.readline())
        return found

    def sample(self) -> dict[str, float]:
        """Everything, now."""
        held, process = self.ask(), self._process
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        kinds = {k: int(v.split()[0]) * 1024 for k, _, v in (s.partition(":") for s in status)
                 if k in ("RssAnon", "RssFile")}  # fmt: skip
        children = process.children(recursive=True)
        health = httpx.get(f"{self.server.url}/health", trust_env=False, timeout=60).json()
        return {
            "seconds": time.monotonic() - self.began,
            "memory": process.memory_info().rss,
            "own memory": kinds["RssAnon"],
            "children's memory": sum(c.memory_info().rss for c in children),
            "children": len(children),
            "threads": process.num_threads(),
            "files": process.num_fds(),
            "sockets": len(process.net_connections()),
            "held": held["capacity"] - held["free"],
            "kept": held["kept"],
            "objects": held["objects"],
            "requests": health["requests"]["total"],
            "unfinished": health["requests"]["running"] + health["requests"]["waiting"],
        }

    async def through(
        self, seconds: float, clients: Clients, work: asyncio.Task[None]
    ) -> list[dict[str, float]]:
        """Samples for so long; a line a minute of how it goes."""
        samples, until, told = [], time.monotonic() + seconds, 0.0
        while (now := time.monotonic()) < until and not work.done():
            samples.append(await asyncio.to_thread(self.sample))
            if now - told > 60:
                told, last = now, samples[-1]
                print(
                    f"{last['seconds'] / 60:5.1f} min: {last['memory'] / 1e6:.1f} MB, "
                    f"{last['requests']:.0f} requests, {len(clients.surprises)} surprises",
                    flush=True,
                )
            await asyncio.sleep(EVERY)
        return samples

    async def settled(self, clients: Clients) -> dict[str, float]:
        """A sample while nobody asks and no connection is open."""
        await clients.quiet()
        await clients.close_connections()
        for _ in range(100):
            found = await asyncio.to_thread(self.sample)
            if (
                not found["unfinished"] and not found["held"] and found["sockets"] <= 1
            ):  # the one it listens on
                break
            await asyncio.sleep(0.1)
        return found

    def stop(self) -> int:
        code = self.server.stop()
        self._answers.close()
        return code


async def soak(watched: Watched, minutes: float, seed: int) -> dict[str, Any]:
    """Samples of two halves, and what there is when nobody asks after each of them."""
    clients = Clients(watched.server.url, CLIENTS, seed)
    work = asyncio.create_task(clients.run())
    halves = []
    for _ in range(2):
        clients.go_on()
        samples = await watched.through(30 * minutes, clients, work)
        halves.append({"samples": samples, "idle": await watched.settled(clients)})
    cleared = await asyncio.to_thread(watched.ask, "clear")
    clients.stop()
    await work
    return {
        "halves": halves,
        "cleared": cleared,
        "counts": dict(sorted(clients.counts.items())),
        "surprises": clients.surprises[:50],
        "tokens": clients.tokens,
    }


def verdict(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a soak says, check by check."""
    early, late = (half["samples"] for half in found["halves"])
    before, after = (half["idle"] for half in found["halves"])
    cleared, samples = found["cleared"], [*early, *late]
    rows: dict[str, Any] = {}
    for name in ("memory", "children's memory"):
        middle, low, high = slope(*blocks(late, name))
        rows[f"growth of {name}, kB a minute"] = {
            "slope": middle / 1e3,
            "from": low / 1e3,
            "to": high / 1e3,
            "at most": BOUND / 1e3,
            "holds": high <= BOUND,
        }
    rows["memory"] = {
        "at half time": before["memory"],
        "at the end": after["memory"],
        "most": max(s["memory"] for s in samples),
    }
    rows["state"] = {
        "tokens held": after["held"],
        "tokens held, prefixes forgotten": cleared["capacity"] - cleared["free"],
        "prefixes": cleared["kept"],
        "holds": after["held"] == 0
        and cleared["free"] == cleared["capacity"]
        and cleared["kept"] == 0,
    }
    for name in SAME:
        rows[name] = {
            "at half time": before[name],
            "at the end": after[name],
            "most": max(s[name] for s in samples),
            "holds": after[name] <= before[name],
        }
    rows["unexpected answers"] = {
        "number": len(found["surprises"]),
        "holds": not found["surprises"],
    }
    return rows


def draw(found: Mapping[str, Any], path: Path) -> None:
    """The samples over time."""
    samples: list[dict[str, float]] = found["samples"]
    figure = blank(figsize=(11, 6))
    minutes = [s["seconds"] / 60 for s in samples]
    for panel, (name, unit) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        panel.plot(minutes, [s[name] / unit for s in samples])
        panel.set_title(name + (" (MB)" if unit > 1 else ""), fontsize=10)
        panel.set_ylim(bottom=0)
        panel.grid(True, alpha=0.3)
    figure.supxlabel("minutes", fontsize=10)
    save(figure, path)


def measure(
    path: Path, *, threads: int, python: str | None = None, minutes: float = 30.0, seed: int = 0
) -> Mapping[str, Any]:
    """Soak a server of this model."""
    watched = Watched(path, threads or cores())
    try:
        found = asyncio.run(soak(watched, minutes, seed))
    finally:
        code = watched.stop()
    settings = {"model": path.name, "minutes": minutes, "threads": threads, "clients": CLIENTS}
    settings |= {"parallel": PARALLEL, "queue": QUEUE, "state": STATE, "context": CONTEXT}
    samples = [sample for half in found["halves"] for sample in half["samples"]]
    requests = samples[-1]["requests"]
    return {
        "settings": settings,
        **verdict(found),
        "exit": {"code": code, "holds": code == 0},
        "work": {"requests": requests, "tokens": found["tokens"], **found["counts"]},
        "surprises": found["surprises"],
        "samples": samples,
    }
