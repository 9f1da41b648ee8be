"""Speed over batch and context: several streams at once, of Keifu and of its peers.

For every number of streams and length of context, each subject reads as many different prompts and
continues all of them. Decoding is timed while every stream has its first token and none has ended,
and all streams' tokens count. Each subject runs in a process of its own and they take turns.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keifu.core import machine
from keifu.core.errors import KeifuError
from keifu.lm.measure import OURS, Worker, described, spread

SCHEMA = 1
NEW = 64
MEASURES = ("decode", "prefill", "first_token")


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """Which batches and contexts are measured."""

    batches: tuple[int, ...] = (1, 4, 16)
    contexts: tuple[int, ...] = (512, 4096)
    new: int = NEW
    rounds: int = 2
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what says nothing."""
        for name, most in (("batches", 256), ("contexts", 2**20)):
            values = getattr(self, name)
            if not values or not all(1 <= v <= most for v in values) or len(values) > 16:
                text = ",".join(map(str, values)) or "(nothing)"
                raise KeifuError(f"--{name} {text} is not allowed: 1 to 16 numbers up to {most}")


@dataclass
class _Kept:
    """One subject and what it measured, by (batch, context)."""

    worker: Worker
    facts: dict[str, Any] = field(default_factory=dict)
    """What it told of loading."""
    samples: dict[tuple[int, int], list[dict[str, float]]] = field(default_factory=dict)


def grid(
    model: Path,
    subjects: Mapping[str, Sequence[str]],
    options: GridOptions,
    *,
    told: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure every subject in every cell; a JSON object with one row a cell and subject.

    Its `limits` are what the machine allows in each cell, in tokens a second.

    Args:
        model: a path that all subjects can read.
        subjects: the command of each subject's process by its name; the first one is ours.
        told: gets a line on what is being done.
    """
    threads = options.threads or machine.threads()
    absent: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    limits: list[dict[str, float]] = []
    versions: dict[str, str] = {}
    plain = ""
    for context in options.contexts:
        # A process a context, so that memory is that of this context.
        kept: dict[str, _Kept] = {}
        gauge = Worker("ceilings", subjects[OURS])
        try:
            for name, command in subjects.items():
                if name in absent:
                    continue
                worker = Worker(name, command)
                kept[name] = _Kept(worker)
                versions[name] = worker.hello.get("version", "")
                if why := worker.hello.get("absent"):
                    absent[name] = why
            _load(kept, model, threads, context, options, absent)
            vocab, plain = (kept[OURS].facts[fact] for fact in ("vocab", "why_plain"))
            draw = random.Random(options.seed)
            for batch in options.batches:
                for number in range(options.rounds):
                    told(f"{batch} streams at {context}, round {number + 1} of {options.rounds}")
                    prompts = [
                        [draw.randrange(vocab) for _ in range(context)] for _ in range(batch)
                    ]
                    _round(kept, absent, prompts, options, draw)
                rows += _rows(kept, absent, batch, context)
                most = gauge.ask("ceilings", threads=threads)
                limits.append(_limit(kept[OURS].facts, most, batch, context, options.new))
        finally:
            gauge.close()
            for each in kept.values():
                each.worker.close()
    return {
        "schema_version": SCHEMA,
        "machine": described(),
        "settings": {
            "model": model.name,
            "threads": threads,
            "new": options.new,
            "rounds": options.rounds,
        },
        "versions": {n: v for n, v in versions.items() if n not in absent},
        "rows": rows,
        "limits": limits,
        "plain": plain,
        "absent": absent,
    }


def _load(
    kept: Mapping[str, _Kept],
    model: Path,
    threads: int,
    context: int,
    options: GridOptions,
    absent: dict[str, str],
) -> None:
    """Load them all; a peer that cannot load it is absent."""
    for name, each in kept.items():
        if name in absent:
            continue
        room = context + options.new
        given = {"threads": threads, "context": room, "streams": max(options.batches)}
        try:
            each.facts = each.worker.ask("load", model=str(model), **given)
        except KeifuError as error:
            if name == OURS:
                raise
            absent[name] = str(error)


def _round(
    kept: Mapping[str, _Kept],
    absent: dict[str, str],
    prompts: Sequence[Sequence[int]],
    options: GridOptions,
    draw: random.Random,
) -> None:
    """Every subject once, in an order that changes."""
    turns = [name for name in kept if name not in absent]
    draw.shuffle(turns)
    for name in turns:
        each = kept[name]
        try:
            if not each.samples:  # what is compiled, mapped or reserved at first is not counted
                each.worker.ask("together", prompts=[p[:16] for p in prompts], new=8)
            times = each.worker.ask("together", prompts=prompts, new=options.new)["times"]
        except KeifuError as error:
            if name == OURS:
                raise
            absent[name] = str(error)
            continue
        cell = len(prompts), len(prompts[0])
        each.samples.setdefault(cell, []).append(speeds(times, cell[1]))


def speeds(times: Sequence[Sequence[float]], context: int) -> dict[str, float]:
    """What the seconds at which tokens came say.

    `decode`: tokens a second of all streams, while all of them decode; `prefill`: prompt tokens a
    second until the last stream has its first token; `first_token`: the median stream's, seconds.
    """
    if not all(len(each) > 1 for each in times):
        raise KeifuError("a stream ended at once: ask for more tokens with --new")
    begin, end = max(each[0] for each in times), min(each[-1] for each in times)
    count = sum(begin < t <= end for each in times for t in each)
    if count == 0:
        raise KeifuError("no time when all streams decoded: ask for more tokens with --new")
    return {
        "decode": count / (end - begin),
        "prefill": len(times) * context / begin,
        "first_token": statistics.median(each[0] for each in times),
    }


def _limit(
    facts: Mapping[str, Any], most: Mapping[str, float], batch: int, context: int, new: int
) -> dict[str, float]:
    """Weights read once a step, every stream's state, and a row of products for each."""
    step = facts["bytes"] + batch * facts["state"] * (context + new / 2)
    products = most["bf16"] / facts["flops"]
    return {
        "batch": batch,
        "context": context,
        "decode": min(batch * most["bandwidth"] / step, products),
        "prefill": products,
    }


def _rows(
    kept: Mapping[str, _Kept], absent: Mapping[str, str], batch: int, context: int
) -> list[dict[str, Any]]:
    """One row a subject: medians, how often ours is a peer's speed, peak memory."""
    cell, rows = (batch, context), []
    ours = kept[OURS].samples[cell]
    for name, each in kept.items():
        if name in absent:
            continue
        mine = each.samples[cell]
        row: dict[str, Any] = {"subject": name, "batch": batch, "context": context}
        row |= {m: statistics.median(s[m] for s in mine) for m in MEASURES}
        row["memory"] = each.worker.ask("memory")["peak"]
        row["samples"] = mine
        if name != OURS:
            pairs = [[s["decode"] for s in some] for some in (ours, mine)]
            row["ratio"] = spread(*pairs)
        rows.append(row)
    return rows
