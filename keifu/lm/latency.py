"""What the times of requests say: rates, percentiles of latency, goodput.

All times count from when a request was due, not from when it was sent: a client that waits, or a
server that stalls, must not hide how long those behind it waited (coordinated omission).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PERCENTILES = (50, 90, 99)
LATENCIES = {
    "ttft": "time to first token",
    "tpot": "time per output token after the first",
    "itl": "time between two pieces of an answer",
    "e2e": "time to the end of the answer",
}


@dataclass
class Record:
    """One request; times in seconds of one clock."""

    due: float
    sent: float = math.nan
    """When it left, later than it was due by what the client itself lost or was told to wait."""
    pieces: list[float] = field(default_factory=list)
    """When each piece of the answer with something in it came."""
    end: float = math.nan
    prompt_tokens: int = 0
    output_tokens: int = 0
    failed: str = ""
    """Why there is no answer; "" where there is one."""

    @property
    def ttft(self) -> float:
        """Seconds to the first token (to the end where the answer is empty)."""
        return (self.pieces[0] if self.pieces else self.end) - self.due

    @property
    def tpot(self) -> float:
        """Seconds a token after the first; not a number where there is only one."""
        if self.output_tokens < 2 or not self.pieces:
            return math.nan
        return (self.pieces[-1] - self.pieces[0]) / (self.output_tokens - 1)

    @property
    def e2e(self) -> float:
        """Seconds to the end."""
        return self.end - self.due


def percentile(ordered: Sequence[float], q: float) -> float:
    """The q-th percentile of sorted values, between neighbours in proportion."""
    at = (len(ordered) - 1) * q / 100
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and percentiles; None where there are no values."""
    ordered = sorted(v for v in values if not math.isnan(v))
    if not ordered:
        return None
    found = {"mean": math.fsum(ordered) / len(ordered)}
    return found | {f"p{q}": percentile(ordered, q) for q in PERCENTILES}


def good(record: Record, slo: Mapping[str, float]) -> bool:
    """Whether an answer came within every limit (seconds, by latency)."""
    if record.failed:
        return False
    values = {"ttft": record.ttft, "tpot": record.tpot, "e2e": record.e2e}
    values["itl"] = max(_gaps(record), default=math.nan)
    return not any(values[name] > most for name, most in slo.items())


def _gaps(record: Record) -> list[float]:
    return [b - a for a, b in zip(record.pieces, record.pieces[1:], strict=False)]


def most_at_once(records: Sequence[Record]) -> int:
    """The most requests that were due and not answered at one time."""
    events = sorted(
        [(r.due, 1) for r in records] + [(r.end, -1) for r in records if not math.isnan(r.end)]
    )
    now = most = 0
    for _, change in events:
        now += change
        most = max(most, now)
    return most


def summary(records: Sequence[Record], slo: Mapping[str, float] = {}) -> dict[str, Any]:
    """One row of a load test: from the first request that was due to the last answer's end."""
    done = [r for r in records if not r.failed]
    ends = [r.end for r in records if not math.isnan(r.end)]
    seconds = max(ends, default=math.nan) - min((r.due for r in records), default=math.nan)
    prompt, output = (sum(getattr(r, f"{kind}_tokens") for r in done) for kind in _KINDS)
    gaps = [gap for r in done for gap in _gaps(r)]
    row: dict[str, Any] = {
        "requests": len(records),
        "completed": len(done),
        "failed": len(records) - len(done),
        "errors": dict(Counter(r.failed for r in records if r.failed).most_common(8)),
        "seconds": seconds,
        "achieved": len(done) / seconds if done else 0.0,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "output_rate": output / seconds if done else 0.0,
        "total_rate": (prompt + output) / seconds if done else 0.0,
        "at_once": most_at_once(records),
        "late": spread([r.sent - r.due for r in records]),
    }
    row["goodput"] = sum(good(r, slo) for r in records) / seconds if slo and done else None
    for name in ("ttft", "tpot", "e2e"):
        row[name] = spread([getattr(r, name) for r in done])
    row["itl"] = spread(gaps)
    return row


_KINDS = ("prompt", "output")
