"""Find facts in a source a hundred times longer than the encoder reads, without training for it.

    python recipes/unlimiformer.py [FOLDER]

A source is noise with four facts, each a key and its value side by side; the target says the keys
with their values. A tiny T5 learns it on sources of 32 tokens. It is then asked about sources of
4,096 tokens, as it is: cut to its 32 tokens; and with Unlimiformer (Bertsch et al. 2023), whose
heads each read the 16 nearest places of all that overlapping chunks of 32 tokens left. Expected:
over 0.95 of the values right with retrieval, hardly more than chance (0.1 of ten values) without.
About a minute on one core. With FOLDER the model is kept there: `keifu.load(FOLDER, retrieve=16)`.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import tokenizers
import torch

import keifu
from keifu.families import families, save_model
from keifu.nn.pair import PairModule
from keifu.text.marks import Marks
from keifu.text.tokenizer import Tokenizer
from keifu.training import Pairs, Trainer
from keifu.training.loop import TrainOptions
from keifu.training.objectives.seq2seq import Seq2Seq
from keifu.training.optimizers.adam import Adam
from keifu.training.schedules.linear import Linear

BOS, EOS = 0, 1
KEYS, VALUES, NOISE = "abcd", "0123456789", "lmnopqrstu"
NAMES = ["<s>", "</s>", *KEYS, *VALUES, *NOISE]
CONTEXT = 32


def example(length: int, made: random.Random) -> tuple[str, str]:
    """A source of that many tokens, and what is to be said of it."""
    source, said = made.choices(NOISE, k=length), ""
    for key, place in zip(KEYS, made.sample(range(length // 2), len(KEYS)), strict=True):
        fact = key + made.choice(VALUES)
        source[2 * place : 2 * place + 2] = fact
        said += fact
    return " ".join(source), " ".join(said)


def words() -> Tokenizer:
    """A token a letter or digit; a text ends with `</s>` where it is a target."""
    model = tokenizers.models.WordLevel({n: i for i, n in enumerate(NAMES)}, unk_token="</s>")
    rust = tokenizers.Tokenizer(model)
    rust.add_special_tokens(NAMES[:2])
    rust.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return Tokenizer(rust, Marks(named={"bos": BOS, "eos": EOS}))


def learn(folder: Path, *, steps: int = 1000, progress: bool = False) -> Path:
    """Train on short sources and save the model."""
    tokenizer = words()
    family = families["t5"](
        vocab=len(NAMES), width=48, head_width=12, hidden=96, depth=2, heads=4, buckets=16,
        distance=32, context=CONTEXT,
    )  # fmt: skip
    model = family.spec().build()
    assert isinstance(model, PairModule)
    model.initialise(seed=0, std=0.08)

    def batch(number: int) -> Pairs:
        made = random.Random(number)
        rows = [example(CONTEXT, made) for _ in range(32)]
        said = [[BOS, *tokenizer.encode(target), EOS] for _, target in rows]
        return Pairs.of([tokenizer.encode(source) for source, _ in rows], said)

    Trainer(
        model,
        Seq2Seq(),
        optimization=Adam(lr=4e-3),
        schedule=Linear(total=steps, warmup=50),
        options=TrainOptions(steps=steps, clip=1.0, progress=progress),
    ).fit(batch)
    save_model(folder, family, model, tokenizer, settings={"decoder_start_token_id": BOS})
    return folder


def right(folder: Path, length: int, *, retrieve: int | None, count: int = 50) -> float:
    """Share of the values of new sources that are said right; without retrieval these are cut."""
    made, found = random.Random(1), 0
    lm = keifu.load(str(folder), precision="exact", threads=1, retrieve=retrieve)
    try:
        for _ in range(count):
            source, target = example(length, made)
            if retrieve is None:
                source = source[: 2 * CONTEXT]
            said = lm.complete(source, max_tokens=2 * len(KEYS), temperature=0.0).text.split()
            found += sum(a == b for a, b in zip(said[1::2], target.split()[1::2], strict=False))
    finally:
        lm.close()
    return found / (count * len(KEYS))


if __name__ == "__main__":
    torch.set_num_threads(1)  # more only wait for each other on tensors so small
    with tempfile.TemporaryDirectory() as scratch:
        kept = learn(Path(sys.argv[1] if len(sys.argv) > 1 else scratch) / "facts", progress=True)
        print(
            f"sources of {CONTEXT}: {right(kept, CONTEXT, retrieve=None):.2f} of the values right"
        )
        print(f"4,096, cut to {CONTEXT}: {right(kept, 4096, retrieve=None):.2f}")
        print(f"4,096, 16 places a head: {right(kept, 4096, retrieve=16):.2f}")
