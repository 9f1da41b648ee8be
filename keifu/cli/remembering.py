"""A user's memories at the command line: opened, listed, the embedder loaded when needed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from keifu.cli.embedder import EMBEDDER, Lazy
from keifu.cli.model import ModelOptions
from keifu.cli.render import safe
from keifu.cli.table import size, table
from keifu.retrieval.memory import Embedder, Memory, Remembered, file_of, users


class Remembering:
    """The memories of one user while a chat lasts."""

    def __init__(self, user: str, embedder: str | None, options: ModelOptions) -> None:
        """Open the file; `embedder` None is the file's own, else the default. Raises KeifuError."""
        self.user, self.memory = user, Memory(file_of(user))
        kept = self.memory.kept_by
        name = embedder or (EMBEDDER if kept is None else kept[0] or "none")
        self._lazy = None if name == "none" else Lazy(name, options)
        if self._lazy:
            self.memory.embedder = Embedder(name, self._lazy.embed)

    def close(self) -> None:
        """Close the file and the embedder."""
        self.memory.close()
        if self._lazy:
            self._lazy.close()


def shown(memories: Sequence[Remembered]) -> str:
    """Memories as a table."""
    rows = [[str(m.id), _day(m.made), safe(" ".join(m.text.split()))] for m in memories]
    return table(["id", "when", "memory"], rows) if rows else "nothing is remembered"


def as_json(user: str, memories: Sequence[Remembered]) -> dict[str, Any]:
    """The same for programs."""
    rows = [{"id": m.id, "made": m.made, "text": m.text} for m in memories]
    return {"schema_version": 1, "user": user, "memories": rows}


def listing() -> list[dict[str, Any]]:
    """One row a user of whom something is remembered; a file that cannot be read says so."""
    from keifu.core.errors import KeifuError

    rows = []
    for user in users():
        path = file_of(user)
        row: dict[str, Any] = {"user": user, "memories": "?", "size": size(path.stat().st_size)}
        try:
            with Memory(path) as memory:
                kept = memory.kept_by or ("", 0)
                row |= {"memories": len(memory), "embedder": kept[0] or "none"}
        except KeifuError as wrong:
            row["embedder"] = f"({wrong})"
        rows.append(row)
    return rows


def _day(made: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(made))
