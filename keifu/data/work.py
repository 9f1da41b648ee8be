"""Tokenising one unit of a job: read, encode, write its shards and a record of them.

    python -m keifu.data.work FOLDER < numbers of units, one a line

The record is written last, so a unit that was interrupted is done again from its beginning.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np

from keifu.core.atomic import write_text
from keifu.core.errors import KeifuError
from keifu.data.bad import Bad
from keifu.data.document import Document
from keifu.data.example import Example, Ids
from keifu.data.job import WORK, Job, read
from keifu.data.shards import SPLITS, TOKENIZER, Shard, write_shard
from keifu.text.load import load
from keifu.text.tokenizer import Tokenizer

_LONGEST = 1 << 20
"""Characters of a text that is encoded in one go."""
_ENDS = (re.compile(r"(?<=\w)\n"), re.compile(r"(?<=\w) "))
_CHARACTERS, _DOCUMENTS = 1 << 20, 1024
"""Texts that are encoded together: as many as that."""


@lru_cache(maxsize=2)
def opened(folder: Path) -> tuple[Job, Tokenizer]:
    """A folder's job and tokenizer."""
    return Job.read(folder), load(folder / TOKENIZER)


def record_of(folder: Path, number: int) -> Path:
    """Where a unit says that it is done."""
    return folder / WORK / f"unit-{number:06d}.json"


def work(folder: Path, number: int) -> None:
    """Do one unit, whoever did the others and wherever.

    Raises:
        KeifuError: a document cannot be read or encoded (with its place), the disk is full.
    """
    job, tokenizer = opened(folder)
    unit, bad, dropped = job.units[number], Bad(skip=job.encoding.skip_bad), Counter[str]()
    shards: list[Shard] = []
    held: dict[str, list[Example]] = {split: [] for split in SPLITS}
    counts = Counter[str]()

    def flush(split: str) -> None:
        if held[split]:
            nth = sum(shard.split == split for shard in shards)
            name = f"{split}-{unit.source}-{number:06d}-{nth:03d}.safetensors"
            shards.append(
                write_shard(
                    folder / name, held[split],
                    source=unit.source, split=split, vocabulary=job.vocabulary,
                )
            )  # fmt: skip
            held[split], counts[split] = [], 0

    for batch in _batches(read(unit, job.encoding, bad)):
        for document, example in zip(batch, _encoded(batch, job, tokenizer), strict=True):
            if example is None:
                dropped["empty"] += 1
                continue
            split = SPLITS[_chance(document.text) < job.encoding.held_out]
            held[split].append(example)
            counts[split] += len(example.ids)
            if counts[split] >= job.shard_tokens:
                flush(split)
    for split in SPLITS:
        flush(split)
    if bad.count:
        dropped["bad"] += bad.count
    said = {"shards": [asdict(shard) for shard in shards], "dropped": dropped}
    write_text(record_of(folder, number), json.dumps(said))


def _chance(text: str) -> float:
    """A number from 0 to 1 that follows from a text."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / (1 << 48)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _CHARACTERS or len(batch) >= _DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(
    documents: Sequence[Document], job: Job, tokenizer: Tokenizer
) -> Iterator[Example | None]:
    """Each document with its marks; None where there is no text."""
    encoding = job.encoding
    begin, end = np.array(job.begin, np.int64), np.array(job.end, np.int64)
    texts = _ids(documents, [document.text for document in documents], tokenizer)
    prompts = _columns(documents, encoding.prompt, tokenizer)
    targets = _columns(documents, encoding.target, tokenizer)
    for n, document in enumerate(documents):
        if not len(texts[n]):
            yield None
            continue
        first = begin if prompts is None else np.concatenate([begin, prompts[n]])
        ids = np.concatenate([first, texts[n], end])
        keep = None
        if prompts is not None:
            keep = np.arange(len(ids)) >= len(first)
        yield Example(
            ids=ids,
            keep=keep,
            target=None if targets is None else np.concatenate([targets[n], end]),
            label=None if encoding.label is None else _label(document, encoding.label),
        )


def _columns(
    documents: Sequence[Document], column: str | None, tokenizer: Tokenizer
) -> list[Ids] | None:
    if column is None:
        return None
    texts = []
    for document in documents:
        text = document.meta.get(column)
        if not isinstance(text, str):
            raise KeifuError(f"{document.place}: column {column!r} holds no text")
        texts.append(text)
    return _ids(documents, texts, tokenizer)


def _label(document: Document, column: str) -> int:
    label = document.meta.get(column)
    if type(label) is not int:
        raise KeifuError(f"{document.place}: column {column!r} holds no whole number")
    return label


def _ids(documents: Sequence[Document], texts: Sequence[str], tokenizer: Tokenizer) -> list[Ids]:
    """The ids of texts; what cannot be encoded is named by its document's place."""
    parts = [_parts(text) for text in texts]
    try:
        found = iter(tokenizer.encode_many([part for some in parts for part in some]))
        return [
            np.array(
                list(itertools.chain.from_iterable(itertools.islice(found, len(some)))), np.int64
            )
            if len(some) > 1
            else np.array(next(found), np.int64)
            for some in parts
        ]
    except KeifuError:
        for document, text in zip(documents, texts, strict=True):
            try:
                tokenizer.encode_many([text])
            except KeifuError as refused:
                raise KeifuError(f"{document.place}: {refused}") from None
        raise


def _parts(text: str) -> list[str]:
    """A long text in parts, since encoding takes a hundred times its memory.

    They end between a word and the end of its line, where rules that cut texts into words cut, too,
    so that byte-level BPE gives the same ids; else between words, else anywhere.
    """
    found, at = [], 0
    while len(text) - at > _LONGEST:
        window = text[at : at + _LONGEST]
        end = 0
        for rule in _ENDS:
            end = max((match.start() for match in rule.finditer(window, _LONGEST // 2)), default=0)
            if end:
                break
        end = end or _LONGEST
        found.append(text[at : at + end])
        at += end
    return [*found, text[at:]]


def main() -> None:
    """Do the units that standard input names; answer each with a line."""
    folder = Path(sys.argv[1])
    for line in sys.stdin:
        try:
            work(folder, int(line))
            answer = "done"
        except KeifuError as error:
            answer = "failed " + " ".join(str(error).split())
        try:
            sys.stdout.write(answer + "\n")
            sys.stdout.flush()
        except BrokenPipeError:  # whoever asked was killed: the unit is done, the rest is not ours
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return


if __name__ == "__main__":
    main()
