"""`keifu doctor`: what this machine has, what will be slow and why, and what to do about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

from keifu.cli import findings
from keifu.cli.findings import Fact
from keifu.cli.options import Option
from keifu.cli.table import table

SCHEMA = 1


def command(
    measure: Annotated[
        bool, Option("--measure", help="Also measure memory bandwidth and matrix products (5 s).")
    ] = False,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> int:
    """What this machine has, what will be slow and why, and what to do about it.

    The exit code is 1 if something does not work at all.
    """
    facts = list(examine(measure=measure))
    if as_json:
        print(json.dumps({"schema_version": SCHEMA, "facts": [asdict(fact) for fact in facts]}))
    else:
        print(_drawn(facts))
    return int(any(fact.level == "broken" for fact in facts))


def examine(*, measure: bool = False) -> Iterator[Fact]:
    """Every fact, in the order they are shown."""
    yield from findings.software()
    yield from findings.cores()
    yield from findings.memory()
    yield from findings.processor()
    yield from findings.kernels()
    yield from findings.accelerators()
    yield from findings.storage()
    yield from findings.extras()
    yield from findings.environment()
    if measure:
        if sys.stderr.isatty():
            print("measuring ...", file=sys.stderr)
        yield from findings.ceilings()


def _drawn(facts: list[Fact]) -> str:
    mark = {"ok": "", "slow": "slow", "note": "note", "broken": "broken"}
    rows = [[fact.name, fact.value, mark[fact.level]] for fact in facts]
    parts = [table(["what", "found", ""], rows)]
    told = [fact for fact in facts if fact.why]
    if told:
        rows = [[mark[fact.level], fact.name, fact.why, fact.remedy] for fact in told]
        parts.append(table(["", "what", "why", "remedy"], rows))
    else:
        parts.append("Nothing here will hold Keifu back.")
    return "\n\n".join(parts)
