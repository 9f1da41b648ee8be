"""What a source holds: the form of its rows, how many, how long, which are bad and where."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keifu.core.errors import KeifuError
from keifu.data.bad import Bad
from keifu.data.formats import detect, renamed
from keifu.data.read import Reading, found_in, rows_of


@dataclass
class Findings:
    """What was found in a source."""

    source: str
    files: list[tuple[str, int]] = field(default_factory=list)
    """Each file and its bytes."""
    rows: int = 0
    """Rows that were looked at, the bad ones not counted."""
    whole: bool = True
    """Whether that is all of them."""
    formats: Counter[str] = field(default_factory=Counter)
    """Rows by form; "unknown" for those of none."""
    columns: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows by (column, type)."""
    characters: int = 0
    """Of all text in all columns."""
    first: dict[str, str] = field(default_factory=dict)
    """Where each form comes first."""
    bad: Bad = field(default_factory=lambda: Bad(skip=True))

    @property
    def verdict(self) -> str:
        """In one line what it is."""
        if not self.rows:
            return "no rows" + (f", {self.bad.count} bad ones" if self.bad.count else "")
        if len(self.formats) > 1:
            told = ", ".join(f"{n} {name} (first {self.first[name]})"
                             for name, n in self.formats.most_common())  # fmt: skip
            return f"mixed forms: {told}"
        (name,) = self.formats
        return name if name != "unknown" else "no known form"

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "source": self.source, "verdict": self.verdict, "rows": self.rows,
            "whole": self.whole, "formats": dict(self.formats), "first": self.first,
            "characters": self.characters, "bad_rows": self.bad.count,
            "bad_reasons": dict(self.bad.reasons), "bad_examples": self.bad.examples,
            "columns": [{"name": name, "type": kind, "rows": rows}
                        for (name, kind), rows in sorted(self.columns.items())],
            "files": [{"name": name, "bytes": size} for name, size in self.files],
        }  # fmt: skip


def look(source: str | Path, options: Reading = Reading(), *, most: int | None = None) -> Findings:
    """Read a source, or its first `most` rows, and say what it holds.

    Raises:
        KeifuError: it is not there; a file is so damaged that its rows cannot be told apart.
    """
    found = Findings(str(source))
    sources = found_in(source, options)
    for one in sources:
        try:
            found.files.append((str(one.path), one.path.stat().st_size))
        except OSError as refused:
            raise KeifuError(f"cannot read {one.path}: {refused.strerror}") from refused
    every = ((one, row) for one in sources for row in rows_of(one, found.bad, options))
    for one, record in itertools.islice(every, most):
        fields = renamed(record.fields, one.columns, one.tags)
        form = detect(fields)
        name = form.name if form else "unknown"
        found.rows += 1
        found.formats[name] += 1
        found.first.setdefault(name, record.place)
        for column, value in record.fields.items():
            found.columns[str(column), _kind(value)] += 1
            found.characters += _characters(value)
        wrong = form.fault(fields) if form else ""
        if wrong:
            found.bad(record.place, wrong)
    found.whole = most is None or found.rows < most
    return found


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "number", float: "number", list: "list",
             dict: "object", type(None): "nothing"}  # fmt: skip
    return names.get(type(value), type(value).__name__)


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0
