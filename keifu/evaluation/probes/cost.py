"""What a context costs: state, memory and time a token against its length, models side by side.

Attention keeps keys and values of every token, so both grow with the length; a recurrence keeps a
state of one size (Gu & Dao 2023, arXiv 2312.00752, section 4.5). Each model runs in a process of
its own, through the engine's pool and fast path, on random tokens.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from keifu.core.errors import KeifuError
from keifu.evaluation.findings import Column, Lines, Row, finite
from keifu.evaluation.probe import Probe, Subject, check_list
from keifu.lm.measure import Worker


@dataclass(frozen=True, kw_only=True)
class Cost(Probe):
    """What a context costs: bytes of state, memory and time a token against its length.

    MODEL is a decoder of this machine, or `published:NAME` for a published size with random
    weights, which cost the same. `slope` is what the model's parts declare that one more token
    adds; a model whose slope is 0 decodes with constant memory.
    """

    lengths: tuple[int, ...] = field(default=(1024, 2048, 4096), metadata={"commas": True})
    """Tokens in the context when a token's cost is taken, with commas"""
    windows: int = 3
    """Means taken at each length, of which the median counts"""
    window: int = 16
    """Tokens of a mean"""
    threads: int | None = None
    """Threads to compute with (default: the cores this process may use)"""
    precision: Literal["default", "exact"] = "default"
    """`exact` computes in float32 throughout"""

    title = "What a context costs"
    axes = (Column("length", "count"),)
    measures = (
        Column("state", "bytes", "bytes that a request's slot and pages take"),
        Column("declared", "bytes", "bytes that the model's parts say they take"),
        Column("slope", "bytes", "declared bytes a token, once windows are full"),
        Column("resident", "bytes", "memory of the process"),
        Column("token", "seconds", "time a token, decoding at this length"),
        Column("prefill", "rate", "tokens a second, reading up to there"),
    )
    picture = Lines("length", ("state", "token", "prefill"), log=True)
    grid = frozenset({"lengths"})
    loads = False
    examples = (
        "cost smollm2-135m published:mamba-130m        grows beside flat",
        "cost smollm2-135m --lengths 512,2048,8192 --plot cost.png",
    )

    def __post_init__(self) -> None:
        check_list("windows", (self.windows,), 1, 100)
        check_list("window", (self.window,), 1, 4096)
        check_list("lengths", self.lengths, self.windows * self.window + 1, 1 << 24)
        if self.threads is not None:
            check_list("threads", (self.threads,), 1, 1024)

    def begin(self, subject: Subject) -> Metered:
        """A process with the model in it."""
        return Metered(self, subject)


class Metered:
    """One model in its process."""

    def __init__(self, probe: Cost, subject: Subject) -> None:
        self.probe = probe
        self.cells: Sequence[Row] = [{"length": length} for length in probe.lengths]
        self.settings: Row = {}
        self._worker = Worker(subject.name, [sys.executable, "-m", "keifu.lm.subject"])
        try:
            self._facts = self._worker.ask(
                "meter",
                model=subject.ref,
                context=max(probe.lengths),
                threads=probe.threads,
                precision=probe.precision,
            )
        except KeifuError:
            self._worker.close()
            raise

    @property
    def notes(self) -> Sequence[str]:
        """Whether memory grows."""
        fixed, token = self._facts["fixed"], self._facts["token"]
        told = f"{token:,} bytes of state a token" if token else "a state of constant size"
        path = "" if self._facts["path"] != "TorchRunner" else "; decoded on the plain path"
        return [f"{told}, {fixed:,} bytes at any length{path}"]

    async def look(self, cell: Row) -> Row:
        """A token's cost at one length."""
        probe = self.probe
        asked: dict[str, Any] = {"windows": probe.windows, "window": probe.window, **cell}
        found = await asyncio.to_thread(self._worker.ask, "cost", **asked)
        return {
            "state": found["state"],
            "declared": found["declared"],
            "slope": self._facts["token"],
            "resident": found["resident"],
            "token": finite(found["seconds"], "a token's time"),
            "prefill": finite(found["prefill"], "the speed of reading"),
        }

    def close(self) -> None:
        """End the process."""
        self._worker.close()


probe = Cost
