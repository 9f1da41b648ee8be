"""Perplexity of a text by Keifu, by the decoded weights in float32, and by llama-cpp-python."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keifu
from benchmarks.accuracy import WINDOW, text, transformers_on, windows
from keifu.lm.measure import Worker, commands

PEER, BAR = "llama-cpp-python", 0.005


def perplexity(logprobs: Callable[[list[int]], Sequence[float]], parts: list[list[int]]) -> float:
    """exp of the mean negative log-probability over all predicted tokens."""
    found = [value for part in parts for value in logprobs(part)]
    return math.exp(-sum(found) / len(found))


def measure(path: Path, *, threads: int, python: str | None = None) -> Mapping[str, Any]:
    """All of the text, in stretches that are read apart; how far ours is from each other's."""
    lm = keifu.load(str(path), threads=threads)
    ids = lm.encode(text())
    parts = windows(ids)
    print("keifu", flush=True)
    ours = perplexity(lambda part: lm.score(part[:1], part[1:]).logprobs, parts)
    lm.close()
    read = {"bytes": len(text().encode()), "tokens": len(ids), "window": WINDOW}
    found: dict[str, Any] = {"text": read, "keifu": {"perplexity": ours}}

    def against(name: str, theirs: float) -> None:
        off = ours / theirs - 1
        found[name] = {"perplexity": theirs, "off": off, "holds": abs(off) <= BAR}

    print("transformers, float32", flush=True)
    reference = transformers_on(path, threads)
    against(
        "decoded weights in float32",
        perplexity(
            lambda part: reference(part).log_softmax(-1)[range(len(part) - 1), part[1:]].tolist(),
            parts,
        ),
    )
    print(PEER, flush=True)
    worker = Worker(PEER, commands([PEER], python)[PEER])
    try:
        if "absent" in worker.hello:
            return {**found, "absent": str(worker.hello["absent"])}
        worker.ask("load", model=str(path), threads=threads, context=WINDOW)
        against(
            PEER, perplexity(lambda part: worker.ask("logprobs", tokens=part)["logprobs"], parts)
        )
    finally:
        worker.close()
    return {**found, "version": str(worker.hello["version"])}
