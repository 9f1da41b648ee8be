"""A text on its way into a model: what it says, what is known of it, where it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus."""

    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What its source says of it, and what steps found out (`language`, `quality` ...)."""
    place: str = ""
    """Where it stands, for messages: "file:line" (rows of Parquet and Arrow count from 1, too)."""


class Dropped(NamedTuple):
    """Why a document was left out."""

    reason: str
    """A few words that are the same for all such documents: they are counted by it."""
    detail: str = ""
    """What was found in this one."""


class Record(NamedTuple):
    """One row of a data file."""

    fields: Mapping[str, Any]
    place: str


Change = Callable[[Document], Document | Dropped]
"""What a step does to one document, whoever came before."""
