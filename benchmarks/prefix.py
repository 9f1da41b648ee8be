"""What a prefix costs that was read before: 400 tokens and a few of their own, cold and again.

Every round asks twice under a name of its own (`cache_salt`), so that the first is cold. Time is
that from the request to its first token.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keifu
from benchmarks.accuracy import text
from keifu.lm.base import LM

PREFIX, ROUNDS, SHARE = 400, 9, 0.05


def first(lm: LM, ids: Sequence[int], salt: str) -> tuple[float, int]:
    """Seconds to the first token, and how many tokens were cached."""
    done = lm.complete(list(ids), max_tokens=1, temperature=0.0, cache_salt=salt)
    return done.timings.first_token, done.usage.cached_tokens


def measure(path: Path, *, threads: int, python: str | None) -> Mapping[str, Any]:
    """The medians over rounds, and their share."""
    lm = keifu.load(str(path), ctx=2048, threads=threads)
    ids = lm.encode(text())[: PREFIX + 1]
    first(lm, ids, "warm")
    cold, again, chat = list[float](), list[float](), list[float]()
    for salt in map(str, range(ROUNDS)):
        cold.append(first(lm, ids, salt)[0])
        taken, cached = first(lm, ids, salt)
        if cached != PREFIX:
            raise RuntimeError(f"{cached} tokens were cached, not {PREFIX}")
        again.append(taken)
        chat.append(first(lm, [*ids, *ids[:16]], salt)[0])
    lm.close()
    share = statistics.median(again) / statistics.median(cold)
    return {
        f"a repeated prefix of {PREFIX} tokens": {
            "first ms": 1e3 * statistics.median(cold),
            "again ms": 1e3 * statistics.median(again),
            "with 16 new tokens ms": 1e3 * statistics.median(chat),
            "share": share,
            "holds": share < SHARE,
        }
    }
