"""Conversations kept on disk: one JSON file each, written whole or not at all.

`<data folder>/conversations/<id>.json`, readable by the user alone. An id is a time and four random
digits, or the name that the user gave.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keifu.core.errors import KeifuError, unknown
from keifu.core.folders import data_folder, fallback_folder, is_own, writable_folder

SCHEMA = 1
_MOST_BYTES = 64 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_FOLDER = "conversations"


@dataclass(kw_only=True)
class Conversation:
    """What was said, by whom, to which model. A model without a template only has texts."""

    id: str = field(default_factory=lambda: time.strftime("%Y%m%d-%H%M%S-") + os.urandom(2).hex())
    model: str
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    """Users' and assistants' turns: role and content."""

    def prompt(self) -> list[Mapping[str, Any]]:
        """The messages as a model is asked, the system message first."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.messages]

    def say(self, role: str, content: str) -> None:
        """Add a turn."""
        self.messages.append({"role": role, "content": content})

    def undo(self) -> str | None:
        """Take back the last question and its answer; the question, or None if there is none."""
        while self.messages:
            last = self.messages.pop()
            if last["role"] == "user":
                return last["content"]
        return None

    def title(self) -> str:
        """The beginning of the first question."""
        first = next((m["content"] for m in self.messages if m["role"] == "user"), "")
        return " ".join(first.split())[:60]

    def save(self) -> tuple[Path, bool]:
        """Write the file; where, and whether that is a temporary folder. Raises KeifuError."""
        check_id(self.id)
        folder, temporary = writable_folder(_FOLDER)
        path = folder / f"{self.id}.json"
        whole = {
            "schema_version": SCHEMA,
            "id": self.id,
            "model": self.model,
            "system": self.system,
            "messages": self.messages,
        }
        staged = folder / f".{self.id}.{os.getpid()}.tmp"
        try:
            with open(staged, "w", encoding="utf-8", opener=_private) as file:
                json.dump(whole, file, ensure_ascii=False, indent=1)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(path)
        except OSError as wrong:
            staged.unlink(missing_ok=True)
            raise KeifuError(f"cannot save the conversation to {path}: {wrong.strerror}") from None
        return path, temporary


def load(id: str | None) -> Conversation:
    """A saved conversation by its id or the beginning of one; None: the latest.

    Raises KeifuError if there is none, several begin so, or the file is damaged.
    """
    paths = {path.stem: path for path in reversed(saved())}
    if id is None:
        if not paths:
            raise KeifuError("there is no saved conversation to continue")
        return _read(list(paths.values())[-1])
    check_id(id)
    if id not in paths:
        begins = [name for name in paths if name.startswith(id)]
        if len(begins) > 1:
            raise KeifuError(f"{len(begins)} conversations begin with {id}: {', '.join(begins)}")
        if not begins:
            raise unknown("conversation", id, paths, "`keifu chat --list` shows them")
        (id,) = begins
    return _read(paths[id])


def saved() -> list[Path]:
    """The files of saved conversations, the latest first."""
    found = []
    for root in (data_folder(), fallback_folder()):
        folder = root / _FOLDER
        if folder.is_dir() and (root != fallback_folder() or is_own(root)):
            found += [p for p in folder.glob("*.json") if _NAME.fullmatch(p.stem)]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.stem), reverse=True)


def listing() -> list[dict[str, Any]]:
    """One row a saved conversation, the latest first; a damaged file is a row that says so."""
    rows = []
    for path in saved():
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        try:
            c = _read(path)
            row = {"model": c.model, "messages": len(c.messages), "title": c.title()}
        except KeifuError as wrong:
            row = {"model": None, "messages": 0, "title": f"({wrong})"}
        rows.append({"id": path.stem, "when": when, **row})
    return rows


def check_id(id: str) -> None:
    """Refuse what cannot be a conversation's id. Raises KeifuError."""
    if not _NAME.fullmatch(id):
        raise KeifuError(
            f"{id[:80]!r} cannot name a conversation: up to 64 letters, digits, - and _, no path"
        )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _read(path: Path) -> Conversation:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise KeifuError(f"{path} is larger than {_MOST_BYTES >> 20} MiB: no conversation")
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as wrong:
        raise KeifuError(f"{path} is damaged: {wrong}") from None
    if not _is_conversation(whole):
        raise KeifuError(f"{path} is no conversation of this version of Keifu")
    return Conversation(
        id=path.stem, model=whole["model"], system=whole["system"], messages=whole["messages"]
    )


def _is_conversation(whole: Any) -> bool:
    """Whether the JSON is what `save` writes."""
    return (
        isinstance(whole, dict)
        and whole.get("schema_version") == SCHEMA
        and isinstance(whole.get("model"), str)
        and isinstance(whole.get("system"), str | None)
        and isinstance(whole.get("messages"), list)
        and all(
            isinstance(m, dict)
            and m.keys() == {"role", "content"}
            and m["role"] in ("user", "assistant")
            and isinstance(m["content"], str)
            for m in whole["messages"]
        )
    )
