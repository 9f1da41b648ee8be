"""A story of RecurrentGPT's: its state on disk, and the parts of what a model wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keifu.core.errors import FormatError, KeifuError
from keifu.retrieval.memory import MOST_TEXT

SCHEMA = 1
PLANS = 3
STATE = "state.json"
_MOST_STATE = 1 << 20  # bytes

_HEAD = re.compile(
    r"^[ \t>*#_]*(?:\d[.)][ \t]*)?(paragraph|summary|changes|plans?)[ \t]*\d?\b[*_ \t]*:[*_ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\(?[1-9][.):])[ \t]*", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that the next step needs, but for the paragraphs of the long-term memory."""

    goal: str
    step: int = 0
    """Paragraphs that are written."""
    paragraph: str = ""
    summary: str = ""
    plans: tuple[str, ...] = ()


class Unusable(Exception):
    """An answer that lacks something, in words."""


def load(folder: Path, goal: str = "") -> State:
    """The state in a folder, or the beginning of a story about `goal`.

    Raises KeifuError if the story there is about something else, or there is no goal at all;
    FormatError if the file is damaged.
    """
    path = folder / STATE
    if not path.exists():
        if not goal:
            raise KeifuError(f"there is no story in {folder}: say what it is to be about")
        return State(goal=goal)
    try:
        if path.stat().st_size > _MOST_STATE:
            raise FormatError(f"{path} is larger than {_MOST_STATE >> 20} MiB: no state of a story")
        whole = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(whole, dict) or whole.pop("schema_version", None) != SCHEMA:
            raise ValueError("not of this version of Keifu")
        state = State(**{**whole, "plans": tuple(whole["plans"])})
        texts = (state.goal, state.paragraph, state.summary, *state.plans)
        sound = all(isinstance(text, str) and text for text in texts)
        if not (sound and type(state.step) is int and state.step > 0 and len(state.plans) == PLANS):
            raise ValueError("a field has no sensible value")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as wrong:
        raise FormatError(f"{path} is damaged: {wrong}") from None
    if goal and goal != state.goal:
        raise KeifuError(
            f"{folder} holds a story about {state.goal[:60]!r}: go on with that, or use another -o"
        )
    return state


def parts(text: str, wanted: Sequence[str]) -> dict[str, Any]:
    """The parts of an answer that are wanted and there: paragraph, summary, plans (one or more).

    Where a lone part is wanted its name may be missing: the text before any other name is the part.
    """
    marks = list(_HEAD.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)] * bool(marks)
    said: dict[str, list[str]] = {}
    for mark, end in zip(marks, ends, strict=True):
        said.setdefault(mark[1].lower().removesuffix("s"), []).append(text[mark.end() : end])
    before = text[: marks[0].start()] if marks else text
    if before.strip() and len(wanted) == 1:
        said.setdefault(wanted[0].removesuffix("s"), [before])
    found: dict[str, Any] = {}
    for name in ("paragraph", "summary"):
        body = said.get(name, [""])[0].replace("\0", "").strip()
        if 0 < len(body) <= MOST_TEXT:  # what cannot be kept is not there
            found[name] = body
    bodies = said.get("plan", [])
    if len(bodies) == 1 and _ITEM.search(bodies[0]):  # a list under one name
        bodies = _ITEM.split(bodies[0])[1:]
    if plans := tuple(body.strip() for body in bodies if body.strip()):
        found["plans"] = plans
    return {name: found[name] for name in wanted if name in found}


def uncut(text: str) -> str:
    """An answer that was cut, up to the end of its last whole sentence."""
    ends = [m.end() for m in re.finditer(r"[.!?…。！？][\"'”’」]*(?=\s)", text)]
    return text[: ends[-1]] if ends else ""


def picked_plan(text: str) -> int:
    """The plan that is meant, from 0. Raises Unusable."""
    found = re.search(rf"\b[1-{PLANS}]\b", text)
    if not found:
        raise Unusable(f"no plan from 1 to {PLANS} was named")
    return int(found[0]) - 1
