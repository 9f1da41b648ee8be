"""What a server says of itself: one report a process, and /health made of all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse

from keifu.inference.meter import Statistics
from keifu.server.endpoint import Service
from keifu.server.tally import Tally

State = Literal["ok", "loading", "failed", "draining"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """One process, now: what its gate, its models and their engines have counted."""

    engine: int
    """Its number among the replicas."""
    wanted: int
    """How many of those there should be."""
    state: State
    running: int
    waiting: int
    total: int
    """Requests that were let in."""
    cancelled: int
    failed: int
    rejected: Mapping[str, int]
    """Refusals by reason."""
    tallies: Mapping[str, Tally]
    """By model."""
    engines: Mapping[str, Statistics]
    """Of the models that are loaded here."""


Everyone = Callable[[], Awaitable[Sequence[Report]]]
"""Asks all processes behind one address for their reports."""


def report(shared: Service, engine: int = 0, wanted: int = 1) -> Report:
    """What this process says."""
    gate, slots = shared.gate, shared.models.slots()
    state: State = "ok" if shared.models.started else "loading"
    if shared.models.failure is not None:
        state = "failed"
    found = {slot.offer.id: slot.lm.statistics() for slot in slots if slot.lm is not None}
    return Report(
        engine=engine,
        wanted=wanted,
        state="draining" if gate.draining else state,
        running=gate.running,
        waiting=gate.admitted - gate.running,
        total=gate.total,
        cancelled=gate.cancelled,
        failed=gate.failed,
        rejected=gate.rejected,
        tallies={slot.offer.id: slot.tally for slot in slots},
        engines={name: each for name, each in found.items() if each is not None},
    )


def alone(shared: Service) -> Everyone:
    """Where there is one process."""

    async def ask() -> Sequence[Report]:
        return [report(shared)]

    return ask


def health(everyone: Everyone) -> Callable[[Request], Any]:
    """GET /health: 200 while any process takes requests."""

    async def route(request: Request) -> JSONResponse:
        reports = await everyone()
        wanted = max(each.wanted for each in reports)
        states = [each.state for each in reports]
        ready = "ok" in states
        body: dict[str, Any] = {"status": "ok" if ready else states[0]}
        if ready and states.count("ok") < wanted:
            body["status"] = "degraded"
        parts = [_counts(each) for each in reports]
        body["requests"] = {name: sum(part[name] for part in parts) for name in parts[0]}
        if wanted > 1:
            body["replicas"] = {
                "wanted": wanted,
                "ready": states.count("ok"),
                "each": [
                    {"engine": str(each.engine), "status": each.state, "requests": part}
                    for each, part in zip(reports, parts, strict=True)
                ],
            }
        headers = {} if ready else {"retry-after": "1"}
        return JSONResponse(body, 200 if ready else 503, headers)

    return route


def _counts(each: Report) -> dict[str, int]:
    return {
        "running": each.running,
        "waiting": each.waiting,
        "total": each.total,
        "refused_total": each.rejected.get("queue_full", 0),
        "cancelled_total": each.cancelled,
    }
