"""`keifu data preview`: rows as training sees them, coloured by what is learnt or by document."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from keifu.cli.data_mixture import Folders, Packing, Split, Weights, named
from keifu.cli.options import Option
from keifu.cli.render import colourful

if TYPE_CHECKING:
    from keifu.data.preview import Row, Seen

SCHEMA = 1
_LEARNT, _GIVEN = ("\x1b[32m", "\x1b[92m"), ("\x1b[90m", "\x1b[37m")
_PIECES = (("\x1b[36m", "\x1b[96m"), ("\x1b[33m", "\x1b[93m"), ("\x1b[35m", "\x1b[95m"))
_OFF = "\x1b[0m"
By = Literal["loss", "document"]


def preview(
    folders: Folders,
    by: Annotated[By, Option("--by", help="Colour by what is learnt, or by document.")] = "loss",
    packing: Packing = "cut",
    length: Annotated[int, Option("--length", help="Tokens of a row, at most.", min=2)] = 256,
    count: Annotated[int, Option("--count", "-n", help="How many rows.", min=1)] = 3,
    first: Annotated[int, Option("--first", help="The number of the first.", min=0)] = 0,
    weights: Weights = (),
    split: Split = "train",
    seed: Annotated[int, Option("--seed", help="What the order follows from.")] = 0,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object a row.")] = False,
) -> None:
    """Show the rows that a run would take, token by token: `keifu data preview shards`.

    Neighbouring tokens are lighter and darker. By loss: green is learnt, grey is only read.
    Documents of one row, which never see each other, are a line apart.
    """
    from keifu.data.corpus import Corpus
    from keifu.data.feed import FeedOptions, feed
    from keifu.data.preview import preview as rows_of

    options = FeedOptions(
        shards=folders, split=split, packing=packing, length=length, seed=seed,
        weights=named("--weight", weights),
    )  # fmt: skip
    rows = rows_of(feed(options), Corpus(Path(folders[0])).tokenizer, count, first)
    for row in rows:
        if as_json:
            print(json.dumps({"schema_version": SCHEMA, "learnt": row.learnt, **asdict(row)}))
        else:
            print(drawn(row, by, colours=colourful(sys.stdout)))


def drawn(row: Row, by: By, *, colours: bool) -> str:
    """A row's tokens under a line that counts them; without colours, what is only read is in []."""
    sizes = ", ".join(str(n) for n in row.pieces[:12]) + (", ..." if len(row.pieces) > 12 else "")
    facts = [
        f"row {row.number}", row.source, f"{len(row.tokens)} tokens",
        f"documents of {sizes}" if len(row.pieces) > 1 else "one document", f"{row.learnt} learnt",
        *([] if row.label is None else [f"label {row.label}"]),
    ]  # fmt: skip
    head = "-- " + " - ".join(fact for fact in facts if fact)
    parts = [f"\x1b[1m{head}{_OFF}" if colours else head]
    for piece in range(len(row.pieces)):
        parts.append(_piece([t for t in row.tokens if t.piece == piece], by, colours))
    if row.target:
        parts += ["-> to be written:", _piece(row.target, by, colours)]
    return "\n".join(parts) + "\n"


def _piece(tokens: list[Seen] | tuple[Seen, ...], by: By, colours: bool) -> str:
    if not colours:
        return "".join(_marked(list(tokens), by))
    said = []
    for number, token in enumerate(tokens):
        if by == "document":
            pair = _PIECES[token.piece % len(_PIECES)]
        else:
            pair = _LEARNT if token.learnt else _GIVEN
        text = token.text.replace("\n", f"⏎{_OFF}\n{pair[number % 2]}")
        said.append(f"{pair[number % 2]}{text}{_OFF}")
    return "".join(said)


def _marked(tokens: list[Seen], by: By) -> Iterator[str]:
    """The text, with runs of what is only read in brackets."""
    inside = False
    for token in tokens:
        given = by == "loss" and not token.learnt
        if given != inside:
            yield "[" if given else "]"
            inside = given
        yield token.text
    if inside:
        yield "]"
