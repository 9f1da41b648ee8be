"""`keifu data tokenize`: texts to a folder of shards."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from keifu.cli.bar import Bar
from keifu.cli.options import Argument, Fields, Option
from keifu.cli.table import size, table
from keifu.data.job import Encoding
from keifu.data.shards import SPLITS

if TYPE_CHECKING:
    from keifu.data.shards import Manifest
    from keifu.text.tokenizer import Tokenizer

SCHEMA = 1


def tokenize(
    folder: Annotated[Path, Argument("FOLDER")],
    sources: Annotated[tuple[str, ...], Argument("[NAME=]SOURCE...")],
    tokenizer: Annotated[
        str, Option("--tokenizer", "-t", help="A folder with a tokenizer, a model, or a GGUF file.")
    ] = "default",
    encoding: Annotated[Encoding, Fields(Encoding)] = Encoding(),
    workers: Annotated[
        int | None, Option("--workers", "-j", help="Processes (default: one a core).", min=1)
    ] = None,
    ray: Annotated[bool, Option("--ray", help="On the machines of a Ray cluster.")] = False,
    quiet: Annotated[bool, Option("-q", "--quiet", help="Show no progress.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tokenise texts into FOLDER: `keifu data tokenize shards books=books/ code=src.jsonl`.

    A SOURCE is a file (text, JSON lines, JSON, CSV, Parquet, Arrow; .gz and .zst too), a folder of
    them, or a hub data set. Interrupted, the same command goes on where it was.
    """
    from keifu.data.tokenise import tokenise

    given = _named(sources)
    found = tokenizer_of(tokenizer, quiet=quiet)
    bar = Bar(sys.stderr.isatty() and not quiet and not as_json)
    began = time.monotonic()
    try:
        made = tokenise(folder, given, found, encoding, workers=workers, ray=ray, show=bar.update)
    finally:
        bar.close()
    seconds = time.monotonic() - began
    if as_json:
        print(
            json.dumps({"schema_version": SCHEMA, "folder": str(folder), **_facts(made, seconds)})
        )
    elif not quiet:
        _told(folder, made, seconds)


def tokenizer_of(ref: str, *, quiet: bool = False) -> Tokenizer:
    """The tokenizer of a folder, a known model or a GGUF file."""
    from keifu.text.load import load

    path = Path(ref)
    if not path.is_dir():
        from keifu.cli.fetch import fetch

        path = fetch(ref, quiet=quiet)
    if path.is_dir():
        return load(path)
    from keifu.families._load import open_checkpoint

    return open_checkpoint(path).tokenizer()


def _named(sources: tuple[str, ...]) -> dict[str, list[str | Path]]:
    """NAME=SOURCE by name; without one, a source is called as its file."""
    given: dict[str, list[str | Path]] = {}
    for source in sources:
        name, equals, place = source.partition("=")
        if not equals:
            name, place = Path(source).name.split(".")[0] or Path(source).resolve().name, source
        given.setdefault(name, []).append(place)
    return given


def _facts(made: Manifest, seconds: float) -> dict[str, object]:
    return {
        "splits": {split: made.count(split) for split in SPLITS},
        "dropped": made.dropped,
        "vocabulary": made.vocabulary,
        "fingerprint": made.fingerprint,
        "identity": made.identity,
        "shards": len(made.shards),
        "bytes": sum(shard.bytes for shard in made.shards),
        "seconds": seconds,
    }


def _told(folder: Path, made: Manifest, seconds: float) -> None:
    """Tokens of each source, what was left out, how fast."""
    total = sum(shard.tokens for shard in made.shards)
    rows = [
        [source, split, f"{n['documents']:,}", f"{n['tokens']:,}", f"{n['tokens'] / total:.1%}"]
        for split in SPLITS
        for source, n in made.count(split).items()
    ]
    print(table(["source", "split", "documents", "tokens", "share"], rows))
    for reason, count in made.dropped.items():
        print(f"left out: {count:,} {reason}")
    written = size(sum(shard.bytes for shard in made.shards))
    speed = f"{total / max(seconds, 1e-9) / 1e3:,.0f} thousand tokens/s"
    print(f"{folder}: {total:,} tokens in {len(made.shards)} shards, {written}; {speed}")
