"""`keifu data mixture`: what a run takes of each source."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Literal

from keifu.cli.options import Argument, Option
from keifu.cli.table import table
from keifu.core.errors import KeifuError

SCHEMA = 1
Folders = Annotated[tuple[str, ...], Argument("FOLDER...")]
Split = Annotated[Literal["train", "held-out"], Option("--split", help="Which split.")]
Packing = Annotated[
    Literal["cut", "fit", "whole"],
    Option("--packing", help="Cut the stream, fit documents into rows, or one a row."),
]
Weights = Annotated[
    tuple[str, ...], Option("--weight", help="NAME=WEIGHT of a source; several times.")
]


def mixture(
    folders: Folders,
    examples: Annotated[
        int | None, Option("--examples", help="Rows of the run (default: as many as there are).")
    ] = None,
    weights: Weights = (),
    epochs: Annotated[
        tuple[str, ...], Option("--epochs", help="NAME=LIMIT: how often a source may be seen.")
    ] = (),
    temperature: Annotated[
        float, Option("--temperature", help="Above 1, small sources are seen more often.")
    ] = 1.0,
    packing: Packing = "cut",
    length: Annotated[int, Option("--length", help="Tokens of a row, at most.", min=2)] = 1024,
    split: Split = "train",
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What a run takes of each source: `keifu data mixture shards --weight books=1 --weight web=3`.

    Without weights every source has its own size's share. Tokens by the mean length of its rows.
    """
    from keifu.data.feed import FeedOptions, mixed

    options = FeedOptions(
        shards=folders, split=split, packing=packing, length=length, temperature=temperature,
        weights=named("--weight", weights), epochs=named("--epochs", epochs),
    )  # fmt: skip
    made = mixed(options)
    count = sum(part.items for part in made.parts) if examples is None else examples
    count = count if made.length is None or examples is not None else min(count, made.length)
    rows = made.report(count)
    if as_json:
        told = {"examples": count, "end": made.length, "sources": [asdict(row) for row in rows]}
        print(json.dumps({"schema_version": SCHEMA, **told}))
        return
    cells = [
        [row.name, f"{row.examples:,}", f"{row.tokens:,}", f"{row.share:.1%}", f"{row.epochs:.2f}"]
        for row in rows
    ]
    print(table(["source", "examples", "tokens", "share", "epochs"], cells))
    if made.length is not None:
        print(f"the sources end after {made.length:,} examples")


def named(option: str, words: tuple[str, ...]) -> dict[str, float]:
    """NAME=NUMBER words as a mapping."""
    found = {}
    for word in words:
        name, _, number = word.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise KeifuError(f"{option} {word}: expected NAME=NUMBER, such as books=0.5") from None
    return found
