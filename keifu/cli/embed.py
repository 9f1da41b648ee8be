"""`keifu embed`: turn texts into vectors."""

from __future__ import annotations

import json
from typing import Annotated

import click

from keifu.cli import gather, model
from keifu.cli.model import ModelOptions
from keifu.cli.options import Argument, Fields, Option

SCHEMA = 1


def command(
    words: Annotated[tuple[str, ...], Argument("[TEXT]...")] = (),
    options: Annotated[ModelOptions, Fields(ModelOptions)] = ModelOptions(),
    as_object: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Turn texts into vectors: one line of JSON a text.

    Each TEXT is one text; piped input is one text a line.
    """
    texts = [gather.text(word, "the text") for word in words]
    if not texts and gather.piped():
        texts = [line for line in gather.gather(()).splitlines() if line.strip()]
    if not texts:
        raise click.UsageError("there is nothing to embed: give a TEXT or pipe lines in")
    model.find(options)
    lm = model.load(options)
    try:
        vectors = lm.embed(texts)
    finally:
        lm.close()
    if as_object:
        whole = {"schema_version": SCHEMA, "model": lm.name, "pooling": lm.pooling}
        print(json.dumps({**whole, "embeddings": vectors}))
        return
    for vector in vectors:
        print(json.dumps(vector))
