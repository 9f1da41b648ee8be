"""Sixteen streams at once beside llama.cpp, which decodes its sixteen sequences in one batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keifu.lm.measure import commands
from keifu.lm.streams import GridOptions, grid

PEER, STREAMS, BAR = "llama-cpp-python", 16, 4.0


def measure(
    path: Path, *, threads: int, python: str | None = None, rounds: int = 5
) -> Mapping[str, Any]:
    """Tokens a second of all streams together, at short and at long contexts."""
    options = GridOptions(batches=(STREAMS,), contexts=(64, 512), threads=threads, rounds=rounds)
    found = grid(path, commands([PEER], python), options, told=print)
    result: dict[str, Any] = {"settings": found["settings"], "versions": found["versions"]}
    for row in found["rows"]:
        name = f"{row['subject']}, {STREAMS} streams at {row['context']} tokens"
        told = {m: row[m] for m in ("decode", "prefill", "first_token", "memory")}
        if "ratio" in row:
            told |= {f"ratio {k}": v for k, v in row["ratio"].items()}
            told["holds"] = row["ratio"]["median"] >= BAR
        result[name] = told
    if found["plain"]:
        result["no fast path"] = found["plain"]
    return {**result, **({"absent": str(found["absent"])} if found["absent"] else {})}
