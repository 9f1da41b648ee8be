"""What an agent does, as a stream of typed events that terminal, studio and tests read alike."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from keifu.inference.request import Usage


@dataclass(frozen=True, kw_only=True)
class Began:
    """A run begins, or goes on where an earlier one stopped."""

    goal: str
    done: int
    """Steps that are already behind it."""
    steps: int
    """Steps it means to have done in the end."""


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """A memory was searched for this step."""

    step: int
    query: str
    texts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Said:
    """The model replied."""

    step: int
    purpose: str
    text: str
    usage: Usage


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The reply could not be used; it is asked again, or the run fails."""

    step: int
    purpose: str
    attempt: int
    """From 1."""
    why: str


@dataclass(frozen=True, kw_only=True)
class Chose:
    """One of several ways was taken."""

    step: int
    options: tuple[str, ...]
    chosen: str
    """One of them, or a person's own words."""
    by: Literal["model", "person"]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A part of the result is there, and safe on disk."""

    step: int
    name: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The run is over; an error is raised and no event."""

    steps: int


Event = Began | Recalled | Said | Refused | Chose | Made | Ended


def record(event: Event) -> dict[str, Any]:
    """The event as an object of JSON."""
    return {"event": type(event).__name__.lower(), **dataclasses.asdict(event)}
