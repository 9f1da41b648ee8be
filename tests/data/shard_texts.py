"""Texts, a small tokenizer and shards of them, for tests of the data floor."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

from keifu.text.tokenizer import Tokenizer
from keifu.text.train import TrainOptions, train

WORDS = "the a old new river stone house sings walks sees green slowly under and 12 é 漢".split()


def texts(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    """Sentences of no sense, of many lengths."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, longest, count)
    return [" ".join(random.choice(WORDS, int(n))) + ".\n" for n in sizes]


@cache
def tokenizer(kind: str = "byte-bpe") -> Tokenizer:
    """A tokenizer of 400 tokens."""
    return train(kind, texts(50), TrainOptions(size=400))


def jsonl(path: Path, rows: list[str], **more: object) -> Path:
    """Texts as a file of JSON lines."""
    lines = (json.dumps({"text": text, **more}, ensure_ascii=False) for text in rows)
    path.write_text("\n".join(lines) + "\n")
    return path
