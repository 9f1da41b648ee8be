"""`keifu list KIND` and `keifu show NAME`: what there is, and what is known of one thing."""

from __future__ import annotations

import ast
import importlib.util
import json
import pkgutil
import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from keifu.catalog import System, areas, children, systems
from keifu.checkpoints.known import KNOWN
from keifu.cli.options import Argument, Option
from keifu.cli.table import size, table
from keifu.core.errors import unknown

FOLDERS = {"families": "keifu.families"}
"""Kinds that are a folder of modules, one a name (see core/registry.py)."""
KINDS = ("systems", "areas", "models", *FOLDERS)


def listing(
    kind: Annotated[str, Argument("KIND")],
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what there is of a KIND: systems, areas, models or families."""
    rows = _rows(kind)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))


def show(
    name: Annotated[str, Argument("NAME")],
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is known of NAME: a system of the family tree, a family, a model."""
    facts: dict[str, dict[str, Any]] = {}
    if name in (known := systems()):
        facts["system"] = _system(known[name])
    for kind, package in FOLDERS.items():
        if name in (modules := _modules(package)):
            facts[kind] = {"module": modules[name].stem, "about": _about(modules[name])}
    for model in KNOWN:
        if name in (model.name, *model.aliases):
            facts["model"] = asdict(model)
    if not facts:
        names = {*known, *(model.name for model in KNOWN)}
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
    if kind in FOLDERS:
        found = _modules(FOLDERS[kind])
        return [{"name": name, "about": _about(path)} for name, path in found.items()]
    raise unknown("kind", kind, KINDS)


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
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(package)
    folders = list(spec.submodule_search_locations)
    names = sorted(module.name for module in pkgutil.iter_modules(folders))
    return {
        name.replace("_", "-"): Path(folders[0]) / f"{name}.py"
        for name in names
        if not name.startswith("_")
    }


def _about(path: Path) -> str:
    """The first line of a module's docstring, read and not run."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return text.partition("\n")[0]
