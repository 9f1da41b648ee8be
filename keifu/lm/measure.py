"""Speed of Keifu and its peers on one model, interleaved, and how near the machine's limits it is.

Each subject runs in a process of its own and is asked in turn, several rounds, so that what else
the machine does falls on all of them alike. Ratios are taken within a round, then their median.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keifu.core import machine
from keifu.core.errors import KeifuError, unknown
from keifu.lm import peers

SCHEMA = 1
OURS = "keifu"
SHORT = 16
"""Prompt tokens of the request whose first token is timed."""
LIMIT = 900.0
"""Seconds that a subject may take for one answer."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is measured, and how often."""

    threads: int | None = None
    """Threads of every subject (default: the cores this process may use)"""
    prompt: int = 512
    """Tokens of the prompt that is read, and of context while decoding"""
    new: int = 64
    """Tokens that are made"""
    rounds: int = 5
    """How often each subject is asked"""
    seed: int = 0
    """Of the random prompts"""

    def __post_init__(self) -> None:
        """Refuse what says nothing."""
        bounds = {"threads": 1024, "prompt": 2**20, "new": 2**16, "rounds": 1000}
        for name, most in bounds.items():
            value, least = getattr(self, name), 2 if name == "new" else 1
            if value is not None and not least <= value <= most:
                raise KeifuError(f"--{name} {value} is not allowed: from {least} to {most}")


class Worker:
    """One subject's process; `ask` sends a request and waits for its answer."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )
        self.hello = self._answer()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer; KeifuError where the subject failed, with what it said."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise KeifuError(f"{self.name} ended: {self._said()}") from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        clock = threading.Timer(LIMIT, self._process.kill)
        clock.start()
        line = self._process.stdout.readline()
        clock.cancel()
        if not line:
            raise KeifuError(f"{self.name} ended or took over {LIMIT:.0f} s: {self._said()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise KeifuError(f"{self.name} failed: {answer['error']}")
        return answer

    def _said(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()


def commands(names: Sequence[str], python: str | None = None) -> dict[str, list[str]]:
    """How each subject is started: Keifu here, peers in `python` (default: this one)."""
    for name in names:
        if name not in peers.PEERS:
            raise unknown("peer", name, peers.PEERS)
    where = str(Path(peers.__file__))
    ours = [sys.executable, "-m", "keifu.lm.subject"]
    # -P: the folder of that file must not come first where the peer looks for its packages.
    others = {name: [python or sys.executable, "-P", where, name] for name in names}
    return {OURS: ours, **others}


def compare(
    model: Path,
    subjects: Mapping[str, Sequence[str]],
    options: BenchOptions,
    *,
    told: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure every subject on one checkpoint; the result is a JSON object (see `keifu bench`).

    Args:
        model: a path that all subjects can read.
        subjects: the command of each subject's process by its name; the first one is ours.
        told: gets a line on what is being done.
    """
    threads = options.threads or machine.threads()
    workers: list[Worker] = []
    absent: dict[str, str] = {}
    try:
        for name, command in subjects.items():
            told(f"starting {name}")
            worker = Worker(name, command)
            workers.append(worker)
            if "absent" in worker.hello:
                absent[name] = worker.hello["absent"]
        present = [w for w in workers if w.name not in absent]
        loaded = _load(present, model, threads, options, told, absent)
        present = [w for w in present if w.name in loaded]
        # A process of its own, so that its arrays do not count as our memory.
        gauge = Worker("ceilings", subjects[OURS])
        workers.append(gauge)
        samples = _rounds([*present, gauge], loaded[OURS]["vocab"], threads, options, told)
        usage = {w.name: w.ask("memory") for w in present}
    finally:
        for worker in workers:
            worker.close()
    found = {
        w.name: _subject(w.hello, loaded[w.name], samples[w.name], usage[w.name], options)
        for w in present
    }
    limits = _limits(loaded[OURS], samples[gauge.name], options)
    return {
        "schema_version": SCHEMA,
        "machine": described(),
        "settings": {
            "model": model.name,
            "threads": threads,
            "prompt": options.prompt,
            "new": options.new,
            "rounds": options.rounds,
        },
        "limits": limits,
        "subjects": found,
        "ratios": _ratios(found, limits),
        "absent": absent,
    }


def described() -> dict[str, Any]:
    """The machine, without its name."""
    memory = machine.memory()
    return {
        "processor": machine.processor(),
        "features": list(machine.features()),
        "cores": machine.threads(),
        "memory": memory.limit or memory.total,
        "system": sys.platform,
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def _load(
    workers: Sequence[Worker],
    model: Path,
    threads: int,
    options: BenchOptions,
    told: Callable[[str], None],
    absent: dict[str, str],
) -> dict[str, dict[str, Any]]:
    """What each told of loading; a peer that cannot is absent from then on."""
    loaded = {}
    context = options.prompt + options.new + SHORT
    for worker in workers:
        told(f"loading with {worker.name}")
        try:
            loaded[worker.name] = worker.ask(
                "load", model=str(model), threads=threads, context=context
            )
        except KeifuError as error:
            if worker.name == OURS:
                raise
            absent[worker.name] = str(error)
    return loaded


def _rounds(
    workers: Sequence[Worker],
    vocab: int,
    threads: int,
    options: BenchOptions,
    told: Callable[[str], None],
) -> dict[str, dict[str, list[float]]]:
    """Samples of every measure for each subject, after one round that is not counted."""
    draw = random.Random(options.seed)
    samples: dict[str, dict[str, list[float]]] = {w.name: {} for w in workers}
    for number in range(options.rounds + 1):
        told(f"round {number} of {options.rounds}" if number else "warming up")
        long = [draw.randrange(vocab) for _ in range(options.prompt)]
        short = [draw.randrange(vocab) for _ in range(SHORT)]
        turns = list(workers)
        draw.shuffle(turns)  # so that none always runs after the same other
        for worker in turns:
            if worker.name == "ceilings":
                taken = worker.ask("ceilings", threads=threads)
            else:
                taken = _speeds(worker, long, short, options)
            if number:
                for name, value in taken.items():
                    samples[worker.name].setdefault(name, []).append(value)
    return samples


def _speeds(
    worker: Worker, long: Sequence[int], short: Sequence[int], options: BenchOptions
) -> dict[str, float]:
    """One round of one subject: tokens a second, and seconds to a short prompt's first token."""
    run = worker.ask("run", prompt=long, new=options.new)
    brief = worker.ask("run", prompt=short, new=1)
    return {
        "prefill": options.prompt / run["first"],
        "decode": (run["tokens"] - 1) / run["decode"],
        "first_token": brief["first"],
    }


def _subject(
    hello: Mapping[str, Any],
    loaded: Mapping[str, Any],
    samples: Mapping[str, list[float]],
    usage: Mapping[str, Any],
    options: BenchOptions,
) -> dict[str, Any]:
    measures = {n: samples[n] for n in ("first_token", "prefill", "decode")}
    return {
        "version": hello["version"],
        "weights": loaded["weights"],
        "import": hello["import"],
        "load": loaded["seconds"],
        **{name: statistics.median(values) for name, values in measures.items()},
        "memory": usage["peak"],
        "samples": measures,
        **{key: loaded[key] for key in ("path", "why_plain") if key in loaded},
    }


def _limits(
    loaded: Mapping[str, Any], samples: Mapping[str, list[float]], options: BenchOptions
) -> dict[str, float]:
    """The machine's ceilings (the best of all rounds) and what they allow, in tokens a second."""
    bandwidth, peak = max(samples["bandwidth"]), max(samples["bf16"])
    # While decoding, the context grows from the prompt to all of it; its middle is the mean.
    context = options.prompt + options.new / 2
    read = loaded["bytes"] + loaded["state"] * context
    return {
        "bandwidth": bandwidth,
        "bf16": peak,
        "bytes_per_token": read,
        "flops_per_token": loaded["flops"],
        "decode": bandwidth / read,
        "prefill": peak / loaded["flops"],
    }


def _ratios(
    found: Mapping[str, Mapping[str, Any]], limits: Mapping[str, float]
) -> dict[str, dict[str, dict[str, float]]]:
    """How much faster we are than each peer, and what part of the limit we reach, by measure."""
    ours = found[OURS]["samples"]
    ratios: dict[str, dict[str, dict[str, float]]] = {}
    for name in found:
        if name == OURS:
            continue
        theirs = found[name]["samples"]
        ratios[name] = {m: spread(ours[m], theirs[m]) for m in ("prefill", "decode")}
        ratios[name]["first_token"] = spread(theirs["first_token"], ours["first_token"])
    ratios["limit"] = {
        m: spread(ours[m], [limits[m]] * len(ours[m])) for m in ("prefill", "decode")
    }
    return ratios


def spread(some: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Ratios of pairs: their median, the lowest, the highest."""
    ratios = [a / b for a, b in zip(some, others, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
