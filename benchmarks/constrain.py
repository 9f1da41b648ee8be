"""What a constraint costs: tokens a second of the default model with and without a JSON schema."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import keifu
from keifu.inference.constraint import Constraint
from keifu.lm.base import LM

TOKENS = 256
ROUNDS = 9
MOST = 0.10
"""Of the time of a free output of as many tokens, what a constrained one may take more."""
FIRST = 0.5
"""Seconds that the first constrained request of a process may take more than a free one."""
RECORDS = {
    "type": "array",
    "minItems": 100,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 3, "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["new", "hot", "old"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    },
}
"""About half of its tokens are forced by those before them."""
PROSE = {"type": "string", "minLength": 4 * TOKENS, "maxLength": 20 * TOKENS}
"""Nothing in it is forced, and nearly every token may come next."""
SCHEMAS = {"records": RECORDS, "prose": PROSE}


def _decode(lm: LM, constraint: Constraint | None) -> tuple[float, float]:
    """Milliseconds a token of one output, by the clock and by the processors."""
    cpu = time.process_time()
    done = lm.complete(
        "A list of people, as JSON:",
        constraint=constraint,
        max_tokens=TOKENS,
        temperature=1.5,
        top_p=1.0,
        top_k=0,
        seed=1,
        ignore_eos=True,
    )
    assert len(done.tokens) == TOKENS
    return 1e3 * done.timings.decode / TOKENS, 1e3 * (time.process_time() - cpu) / TOKENS


def _first(lm: LM, constraint: Constraint | None) -> float:
    """Seconds until the first token of a request."""
    begun = time.perf_counter()
    lm.complete("A list of people, as JSON:", constraint=constraint, max_tokens=1)
    return time.perf_counter() - begun


def measure(path: Path | None, *, threads: int, python: str | None = None) -> dict[str, Any]:
    """Rounds of all in turn, and the medians of what a constrained output takes more than a free
    one of as many tokens."""
    wanted = {name: Constraint.json(schema) for name, schema in SCHEMAS.items()}
    lm = keifu.load(str(path), ctx=1024, threads=threads)
    try:
        free, bound = _first(lm, None), _first(lm, wanted["records"])
        free = min(free, _first(lm, None))
        for constraint in (None, *wanted.values()):
            _decode(lm, constraint)
        rounds = []
        for number in range(ROUNDS):
            turn: list[tuple[str, Constraint | None]] = [("free", None), *wanted.items()]
            turn = turn if number % 2 else turn[::-1]
            rounds.append({name: _decode(lm, constraint) for name, constraint in turn})
    finally:
        lm.close()
    found: dict[str, Any] = {}
    for name in wanted:
        clock, cpu = (
            statistics.median(r[name][which] / r["free"][which] - 1 for r in rounds)
            for which in (0, 1)
        )
        found[name] = {
            "ms_free": statistics.median(r["free"][0] for r in rounds),
            "ms_constrained": statistics.median(r[name][0] for r in rounds),
            "more_time": clock,
            "more_cpu": cpu,
            "holds": clock < MOST,
        }
    return {**found, "first": {"seconds_more": bound - free, "holds": bound - free < FIRST}}
