"""`keifu embed`: turn texts into vectors."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click

from keifu.cli import gather, model
from keifu.cli.bar import Bar
from keifu.cli.model import ModelOptions
from keifu.cli.options import Argument, Fields, Option
from keifu.core.errors import KeifuError

if TYPE_CHECKING:
    from keifu.lm.base import Embeddings

SCHEMA = 1
MOST = 1 << 30
"""Bytes of a file of texts."""
ENDINGS = (".npy", ".jsonl")
LONG = 256
"""Texts from which on a bar is drawn."""


@dataclass(frozen=True, kw_only=True)
class EmbedModel(ModelOptions):
    """Which model embeds: by default one that was trained for it, not the one that chats."""

    model: str = field(default="minilm-l6-v2", metadata={"option": Option("-m", "--model")})
    """Name, path, hub id, or URL of a server; `keifu models list` shows what is here"""


def command(
    words: Annotated[tuple[str, ...], Argument("[TEXT]...")] = (),
    options: Annotated[EmbedModel, Fields(EmbedModel)] = EmbedModel(),
    source: Annotated[
        Path | None,
        Option("--file", help="Texts from a file: one a line, or the objects of a .jsonl."),
    ] = None,
    key: Annotated[str, Option("--key", help="Which field of a .jsonl's objects is the text.")] = (
        "text"
    ),
    output: Annotated[
        Path | None,
        Option("-o", "--output", help="Write to a file: .npy (texts, width) float32, or .jsonl."),
    ] = None,
    pooling: Annotated[
        str | None,
        Option(
            "--pooling",
            help="cls, mean, max, mean_sqrt_len, weightedmean, lasttoken, or several (cls+mean).",
        ),
    ] = None,
    normalize: Annotated[
        Literal["model", "yes", "no"],
        Option("--normalize", help="Whether vectors are brought to length one."),
    ] = "model",
    truncate: Annotated[
        Literal["error", "end"],
        Option("--truncate", help="A text that is too long is an error, or loses its end."),
    ] = "error",
    prompt: Annotated[
        str | None,
        Option("--prompt", help="The model's instruction of that name before each text."),
    ] = None,
    batch: Annotated[
        int | None, Option("--batch", help="Tokens that run together (default: 2048).", min=1)
    ] = None,
    as_object: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Turn texts into vectors: one line of JSON a text.

    Each TEXT is one text; piped input is one text a line. Which model, how its vectors are made and
    how many texts lost their end is in the object of --json, or said on stderr.
    """
    if output is not None and output.suffix not in ENDINGS:
        raise click.UsageError(f"--output {output} must end in {' or '.join(ENDINGS)}")
    texts = _texts(words, source, key)
    model.find(options)
    lm = model.load(options, pooling=pooling, batch=batch)
    wish = {"model": None, "yes": True, "no": False}[normalize]
    bar = Bar(len(texts) >= LONG and sys.stderr.isatty())
    try:
        found = lm.embeddings(
            texts, truncate=truncate, normalize=wish, prompt=prompt, progress=bar.update
        )
    finally:
        bar.close()
        lm.close()
    if found.cut:
        model.warn(
            f"{found.cut} of {len(texts)} texts were longer than {lm.context} tokens and cut"
        )
    if "assumed" in lm.pooling:
        model.warn(f"{options.model} does not say how its vectors are made: took {lm.pooling}")
    if output is not None:
        _write(output, texts, found)
    told = {"schema_version": SCHEMA, "model": lm.name, "pooling": lm.pooling}
    told |= {"tokens": found.tokens, "truncated": found.cut}
    if as_object:
        more: dict[str, Any] = {"output": str(output)} if output else {"embeddings": found.vectors}
        print(json.dumps(told | more))
    elif output is None:
        for vector in found.vectors:
            print(json.dumps(vector))


def _texts(words: tuple[str, ...], source: Path | None, key: str) -> list[str]:
    """The texts: words, or the lines of a file, or those that are piped in."""
    texts = [gather.text(word, "the text") for word in words]
    if source is not None:
        if texts:
            raise click.UsageError("give TEXTs or --file, not both")
        texts = _lines(source, key)
    elif not texts and gather.piped():
        texts = [line for line in gather.gather(()).splitlines() if line.strip()]
    if not texts:
        raise click.UsageError("there is nothing to embed: give a TEXT, --file, or pipe lines in")
    return texts


def _lines(source: Path, key: str) -> list[str]:
    """One text a line, or a line of JSON."""
    try:
        if source.stat().st_size > MOST:
            raise KeifuError(f"{source} has more than {MOST >> 20} MB of text: split it")
        whole = source.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise KeifuError(f"cannot read {source}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise KeifuError(f"{source} is not UTF-8 at byte {error.start}") from None
    lines = [(n, line) for n, line in enumerate(whole.split("\n"), 1) if line.strip()]
    if source.suffix != ".jsonl":
        return [line.rstrip("\r") for _, line in lines]
    return [_text_of(line, f"{source}:{n}", key) for n, line in lines]


def _text_of(line: str, where: str, key: str) -> str:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise KeifuError(f"{where} is no JSON") from None
    text = found.get(key) if isinstance(found, dict) else found
    if not isinstance(text, str):
        raise KeifuError(f"{where} has no text under {key!r}: name its field with --key")
    return text


def _write(output: Path, texts: list[str], found: Embeddings) -> None:
    """A matrix, or one object a text; there whole or not at all."""
    import numpy as np

    from keifu.core.atomic import written

    with written(output) as file:
        if output.suffix == ".npy":
            np.save(file, np.asarray(found.vectors, dtype=np.float32))
            return
        for text, vector in zip(texts, found.vectors, strict=True):
            line = json.dumps({"text": text, "embedding": vector}, ensure_ascii=False)
            file.write(line.encode() + b"\n")
