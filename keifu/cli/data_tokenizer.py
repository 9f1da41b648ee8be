"""`keifu data train-tokenizer`: learn a vocabulary from texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from keifu.cli.options import Argument, Fields, Option
from keifu.core.errors import KeifuError
from keifu.data.read import Reading, documents
from keifu.text.train import TrainOptions

SCHEMA = 1
_SAMPLE = 1 << 20


def train_tokenizer(
    folder: Annotated[Path, Argument("FOLDER")],
    sources: Annotated[tuple[str, ...], Argument("SOURCE...")],
    kind: Annotated[
        Literal["byte-bpe", "spm-bpe", "unigram", "wordpiece"],
        Option(
            "--kind", help="GPT-2's BPE over bytes, Gemma's BPE, T5's Unigram, BERT's WordPiece."
        ),
    ] = "byte-bpe",
    options: Annotated[TrainOptions, Fields(TrainOptions)] = TrainOptions(),
    column: Annotated[str, Option("--column", help="Column that holds the text.")] = "text",
    unit: Annotated[
        Literal["file", "line", "paragraph"],
        Option("--unit", help="What one document of a text file is."),
    ] = "file",
    most: Annotated[
        float | None, Option("--most", help="Learn from so many MB of text.", min=0)
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Learn a vocabulary and write its files to FOLDER: `train-tokenizer tok books/ --size 4096`.

    The files are what transformers loads; `keifu data tokenize --tokenizer FOLDER` uses them.
    """
    from keifu.text.train import train

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise KeifuError(f"{folder} is there already: name another folder")
    texts = _Texts(sources, Reading(column=column, unit=unit), most)
    made = train(kind, texts.read(), options)
    if not texts.documents:
        raise KeifuError("there is no text to learn from")
    made.save(folder)
    ratio = made.bytes_per_token({"sample": texts.sample})["sample"]
    facts = {
        "folder": str(folder), "kind": kind, "tokens": made.vocab_size,
        "documents": texts.documents, "characters": texts.characters, "bytes_per_token": ratio,
    }  # fmt: skip
    if as_json:
        print(json.dumps({"schema_version": SCHEMA, **facts}))
    else:
        print(
            f"{folder}: {made.vocab_size:,} tokens learnt from {texts.documents:,} documents, "
            f"{texts.characters / 1e6:.1f} million characters; {ratio:.2f} bytes a token"
        )


class _Texts:
    """The texts of sources one by one, counted; the first ones are kept as a sample."""

    def __init__(self, sources: tuple[str, ...], reading: Reading, most: float | None) -> None:
        self.sources, self.reading = sources, reading
        self.most = None if most is None else most * 1e6
        self.documents, self.characters, self.sample = 0, 0, ""

    def read(self) -> Iterator[str]:
        """Until all is read, or as much as may be."""
        for source in self.sources:
            for document in documents(source, options=self.reading):
                if self.most is not None and self.characters >= self.most:
                    return
                self.documents += 1
                self.characters += len(document.text)
                if len(self.sample) < _SAMPLE:
                    self.sample += document.text[: _SAMPLE - len(self.sample)]
                yield document.text
