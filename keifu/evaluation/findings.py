"""Findings: a table with named axes, so that one printer, one writer and one plotter serve all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from keifu.core.errors import KeifuError

Value = str | int | float | bool | None
Row = Mapping[str, Value]
Kind = Literal["name", "count", "percent", "share", "bytes", "seconds", "rate", "nats"]
"""How a column is written: a share is 0 to 1, a percent 0 to 100, a rate is tokens a second."""


@dataclass(frozen=True)
class Column:
    """An axis (what was chosen) or a measure (what came out)."""

    name: str
    kind: Kind
    about: str = ""


@dataclass(frozen=True)
class Heat:
    """A picture: a measure over two axes, one panel a model."""

    x: str
    y: str
    value: str


@dataclass(frozen=True)
class Lines:
    """A picture: measures over one axis, one panel a measure, one line for each of the others."""

    x: str
    values: tuple[str, ...]
    log: bool = False
    """Both axes logarithmic: what is flat, what grows in proportion."""


Picture = Heat | Lines


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a probe found."""

    probe: str
    title: str
    axes: tuple[Column, ...]
    measures: tuple[Column, ...]
    rows: tuple[Row, ...]
    picture: Picture
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What was asked, so that it can be asked again."""
    notes: tuple[str, ...] = ()
    """What a reader must know, a line each."""

    def column(self, name: str) -> Column:
        """The axis or measure of a name."""
        return next(c for c in (*self.axes, *self.measures) if c.name == name)

    def values(self, name: str) -> list[Value]:
        """The different values of a column, in the order they come."""
        return list(dict.fromkeys(row[name] for row in self.rows))

    def shown(self) -> list[Column]:
        """Columns that say something: those with a value in some row."""
        return [
            c
            for c in (*self.axes, *self.measures)
            if c in self.axes or any(row.get(c.name) is not None for row in self.rows)
        ]

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "schema": 1,
            "probe": self.probe,
            "settings": dict(self.settings),
            "axes": [c.name for c in self.axes],
            "measures": [c.name for c in self.measures],
            "rows": [dict(row) for row in self.rows],
            "notes": list(self.notes),
        }


def means(rows: Iterable[Row], axes: Sequence[Column], measures: Sequence[Column]) -> list[Row]:
    """Rows with the same axes as one: each measure's mean over those that have it."""
    groups: dict[tuple[Value, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[c.name] for c in axes), []).append(row)
    found: list[Row] = []
    for place, members in groups.items():
        one: dict[str, Value] = {c.name: v for c, v in zip(axes, place, strict=True)}
        for column in measures:
            given = [row[column.name] for row in members if row.get(column.name) is not None]
            numbers = [v for v in given if isinstance(v, int | float)]
            if len(numbers) != len(given):
                one[column.name] = given[0]
            else:
                one[column.name] = math.fsum(numbers) / len(numbers) if numbers else None
        found.append({**one, "samples": len(members)})
    return found


def finite(value: float, what: str) -> float:
    """The value; KeifuError if it is no number, as from a damaged model."""
    if not math.isfinite(value):
        raise KeifuError(f"{what} is {value}, which is no measure: the model may be damaged")
    return value


def written(value: Value, kind: Kind) -> str:
    """A value as a person reads it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if kind == "bytes":
        return _scaled(value, ("B", "kB", "MB", "GB", "TB"))
    if kind == "seconds":
        return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
    if kind == "rate":
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    if kind in ("count", "percent"):
        text = f"{value:g}" if value < 10**6 else str(round(value))
        return text + ("%" if kind == "percent" else "")
    return f"{value:.2f}"


def _scaled(value: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if value < 999.5:
            return f"{value:.0f} {unit}" if value >= 99.5 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} {units[-1]}"
