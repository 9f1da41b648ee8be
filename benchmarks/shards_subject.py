"""One way from texts to tokens: shards_subject.py WAY TEXT TOKENIZER FOLDER THREADS LENGTH."""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any


def keifu(text: Path, tokenizer: Path, folder: Path, threads: int, length: int) -> Any:
    """Everything, rows read at the end."""
    from keifu.data.corpus import Corpus
    from keifu.data.packing import Cut
    from keifu.data.tokenise import tokenise
    from keifu.text.load import load

    found = load(tokenizer)
    start = time.perf_counter()
    made = tokenise(folder / "shards", {"text": [text]}, found, workers=threads)
    written = time.perf_counter()
    rows = Cut(stream=Corpus(folder / "shards").stream("text"), length=length)
    for number in range(rows.epoch):
        rows(number)
    ended = time.perf_counter()
    tokens = made.count()["text"]["tokens"]
    return {"tokens": tokens, "seconds": ended - start, "rows": ended - written}


def raw(text: Path, tokenizer: Path, folder: Path, threads: int, length: int) -> Any:
    """`encode_batch` alone; threads are RAYON_NUM_THREADS."""
    from tokenizers import Tokenizer

    rust = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    with text.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    tokens, seconds = 0, 0.0
    for at in range(0, len(texts), 256):
        start = time.perf_counter()
        encoded = rust.encode_batch(texts[at : at + 256], add_special_tokens=False)
        seconds += time.perf_counter() - start
        tokens += sum(map(len, encoded))
    return {"tokens": tokens, "seconds": seconds}


def datasets(text: Path, tokenizer: Path, folder: Path, threads: int, length: int) -> Any:
    """`datasets` and `transformers`, as their examples of language modelling do it."""
    from datasets import Dataset, load_dataset
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast.from_pretrained(tokenizer)

    def encode(batch: dict[str, list[str]]) -> Any:
        return {"input_ids": fast([row + fast.eos_token for row in batch["text"]])["input_ids"]}

    def group(batch: dict[str, list[list[int]]]) -> Any:
        joined = list(itertools.chain.from_iterable(batch["input_ids"]))
        return {"input_ids": [joined[n : n + length] for n in range(0, len(joined), length)]}

    start = time.perf_counter()
    read = load_dataset("json", data_files=str(text), split="train", cache_dir=str(folder))
    assert isinstance(read, Dataset)
    ids = read.map(encode, batched=True, num_proc=threads, remove_columns=["text"])
    rows = ids.map(group, batched=True, num_proc=threads)
    rows.save_to_disk(str(folder / "saved"))
    seconds = time.perf_counter() - start
    return {"tokens": sum(map(len, rows["input_ids"])), "seconds": seconds}


if __name__ == "__main__":
    way, *paths, threads, length = sys.argv[1:]
    ways = {"keifu": keifu, "raw": raw, "datasets": datasets}
    print(json.dumps(ways[way](*map(Path, paths), int(threads), int(length))))  # type: ignore[arg-type]
