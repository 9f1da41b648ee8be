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
"""Of decode speed that a constraint may cost."""
SCHEMA = {
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


def _decode(lm: LM, constraint: Constraint | None) -> tuple[float, float]:
    """Milliseconds a token of one output, by the clock and by the processors."""
    cpu = time.process_time()
    done = lm.complete(
        "A list of people, as JSON:",
        constraint=constraint,
        max_tokens=TOKENS,
        temperature=1.0,
        seed=1,
        ignore_eos=True,
    )
    assert len(done.tokens) == TOKENS
    return 1e3 * done.timings.decode / TOKENS, 1e3 * (time.process_time() - cpu) / TOKENS


def measure(path: Path | None, *, threads: int, python: str | None = None) -> dict[str, Any]:
    """Rounds of both in turn, and the median of their ratios."""
    lm = keifu.load(str(path), ctx=1024, threads=threads)
    try:
        constraint = Constraint.json(SCHEMA)
        begun = time.perf_counter()
        _decode(lm, constraint)
        first = time.perf_counter() - begun
        rounds = []
        for number in range(ROUNDS):
            pair = [None, constraint] if number % 2 else [constraint, None]
            found = {wanted is not None: _decode(lm, wanted) for wanted in pair}
            rounds.append((found[False], found[True]))
    finally:
        lm.close()
    clock = statistics.median(bound[0] / free[0] for free, bound in rounds)
    cpu = statistics.median(bound[1] / free[1] for free, bound in rounds)
    return {
        "decode": {
            "ms_free": statistics.median(free[0] for free, _ in rounds),
            "ms_constrained": statistics.median(bound[0] for _, bound in rounds),
            "share_of_speed": 1 - 1 / clock,
            "share_of_cpu": 1 - 1 / cpu,
            "holds": 1 - 1 / clock < MOST,
        },
        "first": {"seconds": first},
    }
