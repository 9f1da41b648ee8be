"""`keifu gist`: press a prompt into the cache of a few tokens, which stands for it ever after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import click

from keifu.cli import gather, model
from keifu.cli.model import ModelOptions
from keifu.cli.options import Argument, Fields, Option


def command(
    output: Annotated[Path, Option("-o", "--output", help="The cache's file.")],
    words: Annotated[tuple[str, ...], Argument("[TEXT]...")] = (),
    options: Annotated[ModelOptions, Fields(ModelOptions)] = ModelOptions(),
    tokens: Annotated[
        int, Option("--tokens", help="Gist tokens, as many as the model was trained with.", min=1)
    ] = 1,
    as_object: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Press a prompt into a cache: `keifu gist -m MODEL -o prompt.gist @prompt.txt`.

    The prompt is the words, files named as @path, or what is piped in, and is read as it stands.
    MODEL needs a <GIST> token and training with it (recipes/gist.py). Use the cache with `keifu
    complete --gist prompt.gist`.
    """
    text = gather.gather(words)
    if not text:
        raise click.UsageError("there is no prompt to compress: give a TEXT or pipe one in")
    model.find(options)
    lm = model.load(options)
    try:
        from keifu.lm.gist import compress

        cache = compress(lm, text, tokens=tokens)
        cache.save(output)
        said = {"file": str(output), "model": lm.name, **cache.report()}
    finally:
        lm.close()
    if as_object:
        print(json.dumps(said, ensure_ascii=False))
        return
    print(
        f"{output}: {said['prompt_tokens']} tokens -> {said['cache_tokens']}, {said['ratio']:g}x, "
        f"{said['saved_bytes']} bytes saved"
    )
