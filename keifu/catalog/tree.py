"""Loads the family tree from the tables beside it, strictly, and answers who descends from whom."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any

from keifu.core.errors import ConfigError, nearest, unknown

KINDS = ("local", "remote", "retired", "recipe", "note")
STATUSES = ("works", "partial", "missing")
BRANCHES = ("encoder-only", "decoder-only", "encoder-decoder", "other")
OPENNESS = ("open", "closed")


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is known of a published model beside its idea."""

    branch: str  # of the survey's three branches, or other
    organisation: str
    country: str
    licence: str  # of the weights
    openness: str  # open: its weights can be downloaded


@dataclass(frozen=True, kw_only=True)
class System:
    """One row of the tree. `status` speaks of proof alone; `why` says what cannot be done."""

    id: str
    name: str
    area: str  # the file that it stands in
    year: int  # of first publication
    parents: tuple[str, ...]  # what it was built on, by the literature
    idea: str  # one sentence
    source: str  # paper and section, or project
    kind: str  # local: runs here; remote: through a client; retired; recipe: a file to run; note
    status: str
    waits_for: str = ""  # the capability that a partial row lacks
    why: str = ""
    code: str = ""  # dotted path of a module or object
    proof: tuple[str, ...] = ()  # pytest node ids
    command: str = ""  # a command line that shows it; `try` in the files and in JSON
    model: Model | None = None

    def record(self) -> dict[str, Any]:
        """The row as `keifu tree --json` prints it; model fields are empty for what is no model."""
        row: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        row["parents"], row["proof"] = list(self.parents), list(self.proof)
        row["try"] = row.pop("command")
        model = row.pop("model")
        return row | {f.name: getattr(model, f.name) if model else "" for f in fields(Model)}


_ALLOWED = {"kind": KINDS, "status": STATUSES, "branch": BRANCHES, "openness": OPENNESS}
_TYPES = {"year": int, "parents": list, "proof": list, "model": dict}  # all others are strings
_REQUIRED = ("id", "name", "year", "parents", "idea", "source", "kind", "status")
_KEYS = (*_REQUIRED, "waits_for", "why", "code", "proof", "try", "model")


def _faults(row: Mapping[str, Any], keys: Iterable[str], required: Iterable[str]) -> list[str]:
    """What is wrong with the keys and values of one table."""
    keys = tuple(keys)
    found = [f"lacks {key!r}" for key in required if key not in row]
    for key, value in row.items():
        if key not in keys:
            close = nearest(key, keys, 1)
            hint = f", nearest {close[0]!r}" if close else f"; known: {', '.join(keys)}"
            found.append(f"unknown key {key!r}{hint}")
        elif type(value) is not _TYPES.get(key, str):
            found.append(f"{key} = {value!r} is not a {_TYPES.get(key, str).__name__}")
        elif isinstance(value, list) and not all(type(item) is str for item in value):
            found.append(f"{key} holds something that is not a string")
        elif key in _ALLOWED and value not in _ALLOWED[key]:
            found.append(f"{key} = {value!r}; allowed: {', '.join(_ALLOWED[key])}")
        elif key in required and value == "":
            found.append(f"{key} is empty")
    return found


def parse(area: str, text: str) -> tuple[int, str, list[System]]:
    """Read one area's file: its place in the order, its title and its systems.

    Raises ConfigError that lists every fault of the file.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"catalog {area}.toml: {error}") from error
    rows = table.pop("system", [])
    order, title = table.pop("order", None), table.pop("title", None)
    faults = [f"unknown key {key!r} at the top" for key in table]
    if not isinstance(order, int) or not isinstance(title, str):
        faults.append("needs an integer 'order' and a string 'title' at the top")
    model_keys = [f.name for f in fields(Model)]
    for row in rows:
        found = _faults(row, _KEYS, _REQUIRED)
        if isinstance(row.get("model"), dict):
            found += _faults(row["model"], model_keys, model_keys)
        faults += [f"{row.get('id', 'a row without id')}: {fault}" for fault in found]
    if faults:
        raise ConfigError(f"catalog {area}.toml: " + "; ".join(faults))
    return order, title, [_system(area, row) for row in rows]


def _system(area: str, row: dict[str, Any]) -> System:
    """A checked table as a System."""
    values = dict(row, area=area, command=row.get("try", ""))
    values.pop("try", None)
    for key in ("parents", "proof"):
        values[key] = tuple(row.get(key, ()))
    if "model" in row:
        values["model"] = Model(**row["model"])
    return System(**values)


def check(rows: Iterable[System]) -> None:
    """Raise ConfigError unless the rows are one connected tree without cycles, in order of time."""
    rows = list(rows)
    known = {row.id: row for row in rows}
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.id] = counts.get(row.id, 0) + 1
    faults = [f"{name} stands {count} times" for name, count in counts.items() if count > 1]
    for row in rows:
        for parent in row.parents:
            if parent not in known:
                close = ", ".join(nearest(parent, known, 1)) or "none"
                faults.append(f"{row.id}: no parent {parent!r} (nearest: {close})")
            elif known[parent].year > row.year:
                later, year = known[parent].year, row.year
                faults.append(f"{row.id} ({year}) is older than its parent {parent} ({later})")
        if row.status == "works" and not (row.code and row.proof and row.command):
            faults.append(f"{row.id} works, but lacks code, proof or try")
        if (row.status == "partial") != bool(row.waits_for):
            faults.append(f"{row.id}: status 'partial' and waits_for go together")
    if faults:
        raise ConfigError("catalog: " + "; ".join(faults))
    _check_shape(known)


def _check_shape(known: Mapping[str, System]) -> None:
    """Acyclic (parents can be taken away one generation at a time) and connected."""
    left = dict(known)
    while ready := [name for name, row in left.items() if not any(p in left for p in row.parents)]:
        for name in ready:
            del left[name]
    if left:
        raise ConfigError(f"catalog: a cycle of parents among {', '.join(sorted(left))}")
    near: dict[str, set[str]] = {name: set(row.parents) for name, row in known.items()}
    for row in known.values():
        for parent in row.parents:
            near[parent].add(row.id)
    seen: set[str] = set()
    todo = list(known)[:1]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += near[name]
    if apart := sorted(set(known) - seen):
        raise ConfigError(f"catalog: not connected to the rest of the tree: {', '.join(apart)}")


@functools.cache
def _load() -> tuple[dict[str, str], dict[str, System]]:
    folder = resources.files("keifu.catalog")
    files = [item for item in folder.iterdir() if item.name.endswith(".toml")]
    parsed = [(item.name[:-5], *parse(item.name[:-5], item.read_text("utf-8"))) for item in files]
    parsed.sort(key=lambda area: area[1])
    rows = [row for *_, found in parsed for row in found]
    check(rows)
    return {name: title for name, _, title, _ in parsed}, {row.id: row for row in rows}


def areas() -> dict[str, str]:
    """The areas in order: name (of the file) to title."""
    return dict(_load()[0])


def systems() -> dict[str, System]:
    """Every system by id, in the order of the areas. A damaged catalog raises ConfigError."""
    return dict(_load()[1])


def system(name: str) -> System:
    """The system of that id; a miss names the nearest."""
    known = _load()[1]
    if name not in known:
        raise unknown("system", name, known, "`keifu list systems` prints them all")
    return known[name]


def children(name: str) -> list[System]:
    """What was built directly on a system, oldest first."""
    return sorted(
        (row for row in _load()[1].values() if name in row.parents), key=lambda row: row.year
    )
