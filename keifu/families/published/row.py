"""One published checkpoint: its family, configuration, size, terms and chat format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of the table of published checkpoints."""

    family: str
    config: Mapping[str, Any]
    """What its config.json says about the network."""
    parameters: int
    """Distinct parameters: a tied head counts once."""
    source: str
    """Where the size stands."""
    licence: str
    year: int
    chat: str | None = None
    """A name of keifu.text.chat_formats; None for a base model."""
