"""`keifu data inspect`: the form of a data set, its counts, its bad rows with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from keifu.cli.options import Argument, Fields, Option
from keifu.cli.table import size, table
from keifu.data.findings import Findings, look
from keifu.data.formats import FORMATS
from keifu.data.read import Reading
from keifu.data.sources import info

SCHEMA = 1


def inspect(
    sources: Annotated[tuple[str, ...], Argument("SOURCE...")],
    reading: Annotated[Reading, Fields(Reading)] = Reading(),
    rows: Annotated[int | None, Option(help="Look at so many rows alone.", min=1)] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> int:
    """Say what each SOURCE holds: the form of its rows, how many, which are bad and where.

    A SOURCE is a file, a folder, a hub data set or dataset_info.json:NAME
    (without :NAME, all of its entries). The exit code is 1 where
    a row is bad, forms are mixed or there is no row.
    """
    every = [look(source, reading, most=rows) for one in sources for source in _named(one)]
    if as_json:
        found = [findings.as_json() for findings in every]
        print(json.dumps({"schema_version": SCHEMA, "sources": found}, ensure_ascii=False))
    else:
        print("\n\n".join(map(_shown, every)))
    fine = all(f.rows and not f.bad.count and len(f.formats) == 1 for f in every)
    return 0 if fine else 1


def _named(source: str) -> list[str]:
    """Every entry of a dataset_info.json that is named without one of them."""
    if (
        Path(source).name == "dataset_info.json"
        and Path(source).is_file()
        and (told := info(Path(source)))
    ):
        return [f"{source}:{name}" for name in told]
    return [source]


def _shown(found: Findings) -> str:
    says = {form.name: form.says for form in FORMATS}
    told = f"{found.source}: {found.verdict}"
    if found.verdict in says:
        told += f" ({says[found.verdict]})"
    count = f"{found.rows:,}" if found.whole else f"the first {found.rows:,}"
    bytes = sum(size for _, size in found.files)
    files = f"{len(found.files)} file" + "s" * (len(found.files) != 1)
    parts = [told, f"{count} rows, {found.characters:,} characters of text; {files}, {size(bytes)}"]
    if found.columns:
        shown = [[name, kind, f"{rows:,}"] for (name, kind), rows in sorted(found.columns.items())]
        parts.append(table(["column", "type", "rows"], shown))
    if found.bad.count:
        parts.append(f"{found.bad.count:,} bad rows:")
        parts += [f"  {place}: {fault}" for place, fault in found.bad.examples]
        if found.bad.count > len(found.bad.examples):
            parts.append(f"  ... and {found.bad.count - len(found.bad.examples):,} more")
    return "\n".join(parts)
