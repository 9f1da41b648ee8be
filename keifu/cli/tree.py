"""`keifu tree`: draws the family tree in the terminal, or prints it as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Literal

import click
from rich.console import Console
from rich.text import Text

from keifu.catalog import System, areas, system, systems
from keifu.cli.options import Argument, Option
from keifu.core.errors import unknown

STYLES = {"works": "bold green", "partial": "yellow", "missing": "bright_black"}
UNICODE = {"works": "●", "partial": "◐", "missing": "○", "tee": "├╴", "end": "└╴", "bar": "│ "}
UNICODE |= {"from": "←", "rule": "─"}
ASCII = {"works": "*", "partial": "+", "missing": ".", "tee": "|-", "end": "`-", "bar": "| "}
ASCII |= {"from": "<-", "rule": "-"}


def speaks_unicode() -> bool:
    """Whether the user's locale shows more than ASCII.

    LC_CTYPE counts only without LANG: in the C locale Python itself sets it to UTF-8.
    """
    for name in ("LC_ALL", "LANG"):
        if value := os.environ.get(name):
            return "utf" in value.lower()
    return sys.platform in ("win32", "darwin")


def command(
    name: Annotated[str | None, Argument("[SYSTEM]")] = None,
    ancestors: Annotated[bool, Option(help="Draw what SYSTEM descends from instead.")] = False,
    area: Annotated[str | None, Option(help="Only this area, as `decoders`.")] = None,
    status: Annotated[
        Literal["works", "partial", "missing"] | None, Option(help="Only rows of this status.")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Draw the family tree of language models: what descends from what, and what works here.

    With SYSTEM (an id, as `llama`), only what descends from it.
    """
    if area is not None and area not in areas():
        raise unknown("area", area, areas())
    if name is None and ancestors:
        raise click.UsageError("--ancestors needs a SYSTEM, as in: keifu tree llama --ancestors")
    rows = [
        row
        for row in (lineage(name, back=ancestors) if name else systems()).values()
        if area in (None, row.area) and status in (None, row.status)
    ]
    if as_json:
        print(json.dumps([row.record() for row in rows], indent=2))
        return
    console = Console(highlight=False, emoji=False, markup=False)
    marks = UNICODE if speaks_unicode() else ASCII
    if name:
        console.print(_headline(system(name)), end="\n\n")
        lines = [*draw(rows, marks, name), Text()]
    else:
        lines = list(_by_area(rows, marks, console.width))
    for line in [*lines, _legend(rows, marks)]:
        if console.is_terminal:
            console.print(line, no_wrap=True, overflow="ellipsis")
        else:
            console.print(line, no_wrap=True, overflow="ignore", crop=False)
    if name is None:
        console.print(Text("one lineage: keifu tree llama   one system: keifu show llama", "dim"))


def lineage(name: str, *, back: bool = False) -> dict[str, System]:
    """A system with all that descends from it (or, `back`, all that it descends from)."""
    known, found = systems(), {name: system(name)}
    grown = True
    while grown:
        if back:
            more = {p for row in found.values() for p in row.parents}
        else:
            more = {row.id for row in known.values() if any(p in found for p in row.parents)}
        grown = not more <= set(found)
        found |= {key: known[key] for key in more}
    return {key: row for key, row in known.items() if key in found}


def draw(rows: list[System], marks: dict[str, str], target: str = "") -> Iterator[Text]:
    """One line a system, each under the first of its parents that is drawn, oldest first.

    Its other parents, drawn elsewhere or not at all, are named behind it.
    """
    ids = {row.id for row in rows}
    below: dict[str, list[System]] = {}
    for row in sorted(rows, key=lambda row: row.year):
        below.setdefault(next((p for p in row.parents if p in ids), ""), []).append(row)
    stack = [(row, "", "") for row in reversed(below.get("", []))]
    while stack:
        row, indent, joint = stack.pop()
        yield _line(row, indent + joint, marks, row.id == target, ids)
        inner = indent + {marks["tee"]: marks["bar"], marks["end"]: "  "}.get(joint, "")
        found = below.get(row.id, [])
        for child in reversed(found):
            stack.append((child, inner, marks["end" if child is found[-1] else "tee"]))


def _line(row: System, prefix: str, marks: dict[str, str], here: bool, drawn: set[str]) -> Text:
    line = Text(prefix, style="bright_black")
    line.append(marks[row.status] + " ", STYLES[row.status])
    line.append(row.id, "reverse bold" if here else "bold" if row.status == "works" else "default")
    line.append(f" {row.year}", "cyan")
    if row.kind != "local":
        line.append(f" {row.kind}", "magenta")
    above = next((p for p in row.parents if p in drawn), "")
    if others := [p for p in row.parents if p != above]:
        line.append(f" {marks['from']} {', '.join(others)}", "bright_black")
    if row.waits_for:
        line.append(f" (waits for {row.waits_for})", "yellow")
    return line


def _by_area(rows: list[System], marks: dict[str, str], width: int) -> Iterator[Text]:
    """Each area under its title, with how much of it works."""
    for name, title in areas().items():
        if found := [row for row in rows if row.area == name]:
            works = sum(row.status == "works" for row in found)
            count = f" {works} of {len(found)} work"
            rule = marks["rule"] * max(2, min(width, 80) - len(title) - len(name) - len(count) - 4)
            head = Text(title, style="bold underline")
            yield head.append(f"  {name} ", "not bold not underline cyan").append(
                f"{rule}{count}", "not bold not underline bright_black"
            )
            yield from draw(found, marks)
            yield Text()


def _headline(row: System) -> Text:
    """What the system is, above its lineage."""
    facts = [str(row.year), areas()[row.area]]
    if row.model:
        facts += [row.model.organisation, row.model.country, row.model.openness]
    head = Text(row.name, style="bold").append(f"  {', '.join(facts)}", "not bold cyan")
    return head.append(f"\n{row.idea}", "not bold")


def _legend(rows: list[System], marks: dict[str, str]) -> Text:
    legend = Text()
    for name, style in STYLES.items():
        count = sum(row.status == name for row in rows)
        legend.append(f"{marks[name]} {name} {count}", style).append("   ")
    return legend.append(f"of {len(rows)} systems   {marks['from']} further parents", "dim")
