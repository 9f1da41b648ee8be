"""`keifu list KIND` and `keifu show NAME`: what there is, and what is known of one thing."""

from __future__ import annotations

import ast
import json
import pkgutil
import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import keifu
from keifu.catalog import System, areas, children, systems
from keifu.catalog.licences import use_of
from keifu.checkpoints.known import KNOWN
from keifu.cli.options import Argument, Option
from keifu.cli.table import size, table
from keifu.core.errors import KeifuError, unknown
from keifu.lm import cards
from keifu.lm.cards import Card

FOLDERS = {
    "families": "keifu.families",
    "objectives": "keifu.training.objectives",
    "schedules": "keifu.training.schedules",
    "reports": "keifu.training.reports",
    "optimizers": "keifu.training.optimizers",
    "steps": "keifu.data.steps",
    "probes": "keifu.evaluation.probes",
    "agents": "keifu.agents",
}
"""Kinds that are a folder of modules, one a name (see core/registry.py)."""
KINDS = ("systems", "areas", "models", "published", "memories", *FOLDERS)


def listing(
    kind: Annotated[str, Argument("KIND")],
    license: Annotated[
        Literal["commercial", "custom", "research", "closed", "unclear"] | None,
        Option(help="Published models whose licence allows this use."),
    ] = None,
    country: Annotated[str | None, Option(help="Published models from this country.")] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what there is of a KIND: systems, areas, models, published, families, objectives ...

    `families` run; `objectives`, `schedules` and `optimizers` train, `reports` tell of it; `probes`
    ask; `steps` clean data. `models` are what Keifu fetches by name; `published` are the models of
    the family tree with who made them and what their licences allow.
    """
    if (license or country) and kind != "published":
        raise KeifuError(f"--license and --country are of `keifu list published`, not of {kind}")
    rows = _rows(kind)
    if kind == "published":
        rows = _chosen(rows, license, country)
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print("none")
    else:
        print(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))


def show(
    name: Annotated[str, Argument("NAME")],
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is known of NAME: a system of the family tree, a family, a model."""
    facts = _facts(name)
    if not facts:
        names = {*systems(), *(model.name for model in KNOWN), *cards.names()}
        for package in FOLDERS.values():
            names |= set(_modules(package))
        raise unknown("name", name, names, f"lists: keifu list {'|'.join(KINDS)}")
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for kind, values in facts.items():
        print(f"{kind} {name}")
        for key, value in values.items():
            if value not in ("", [], ()):
                text = ", ".join(value) if isinstance(value, list | tuple) else str(value)
                # What is to be copied (a command, test ids) stays on one line.
                width = 10**6 if key in ("try", "proof") else shutil.get_terminal_size().columns
                lead = f"  {key:<13} "
                print(
                    textwrap.fill(
                        text,
                        width,
                        initial_indent=lead,
                        subsequent_indent=" " * 16,
                        break_on_hyphens=False,
                    )
                )


def _facts(name: str) -> dict[str, dict[str, Any]]:
    """All that goes by this name: what it is, and what is known of it."""
    facts: dict[str, dict[str, Any]] = {}
    if name in (known := systems()):
        facts["system"] = _system(known[name])
    for kind, package in FOLDERS.items():
        if name in (modules := _modules(package)):
            facts[kind] = {"module": modules[name].stem, "about": _about(modules[name])}
    for model in KNOWN:
        if name in (model.name, *model.aliases):
            facts["model"] = asdict(model)
    if card := cards.find(name):
        facts["card"] = _card(card)
    return facts


def _rows(kind: str) -> list[dict[str, Any]]:
    known = systems()
    if kind == "systems":
        columns = ("id", "year", "area", "status", "kind", "name")
        return [{key: getattr(row, key) for key in columns} for row in known.values()]
    if kind == "areas":
        inside = {name: [row for row in known.values() if row.area == name] for name in areas()}
        return [
            {
                "area": name,
                "systems": len(inside[name]),
                "work": sum(row.status == "works" for row in inside[name]),
                "title": title,
            }
            for name, title in areas().items()
        ]
    if kind == "models":
        return [
            {"name": m.name, "size": size(m.size), "license": m.license, "about": m.about}
            for m in KNOWN
        ]
    if kind == "published":
        return [
            {
                "id": row.id,
                "year": row.year,
                "organisation": row.model.organisation,
                "country": row.model.country,
                "openness": row.model.openness,
                "use": use_of(row.model.licence, row.model.openness),
                "licence": row.model.licence,
            }
            for row in known.values()
            if row.model
        ]
    if kind == "memories":
        from keifu.cli.remembering import listing as memories

        return memories()
    if kind in FOLDERS:
        found = _modules(FOLDERS[kind])
        return [{"name": name, "about": _about(path)} for name, path in found.items()]
    raise unknown("kind", kind, KINDS)


def _chosen(
    rows: list[dict[str, Any]], license: str | None, country: str | None
) -> list[dict[str, Any]]:
    """The published models of a use and a country."""
    countries = sorted({row["country"] for row in rows})
    if country is not None and country not in countries:
        raise unknown("country", country, countries)
    return [
        row
        for row in rows
        if (license is None or row["use"] == license)
        and (country is None or row["country"] == country)
    ]


def _card(card: Card) -> dict[str, Any]:
    """What is published of a closed model, each number with its source."""
    reported = [f"{fact.claim}: {fact.value} ({fact.source})" for fact in card.facts]
    return {**asdict(card), "facts": reported}


def _system(row: System) -> dict[str, Any]:
    """A row's record with its children, in the order that a person asks."""
    record = row.record()
    record["children"] = [child.id for child in children(row.id)]
    first = (
        "id",
        "name",
        "year",
        "area",
        "kind",
        "status",
        "idea",
        "source",
        "parents",
        "children",
    )
    return {key: record[key] for key in (*first, *(key for key in record if key not in first))}


def _modules(package: str) -> dict[str, Path]:
    """The entries of a folder of modules, found without importing any."""
    folder = Path(keifu.__file__).parents[1].joinpath(*package.split("."))
    found = [m for m in pkgutil.iter_modules([str(folder)]) if not m.ispkg]
    names = sorted(module.name for module in found if not module.name.startswith("_"))
    return {name.replace("_", "-"): folder / f"{name}.py" for name in names}


def about(kind: str, name: str) -> str:
    """The first line of the docstring of one module of a kind."""
    return _about(_modules(FOLDERS[kind])[name])


def _about(path: Path) -> str:
    """The first line of a module's docstring, read and not run."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return text.partition("\n")[0]
