"""Every pre-training objective on real text: the held-out loss before and after a short training.

    python recipes/objectives.py [NAME ...]

The text is Python's own manual (pydoc's topics); every tenth of its texts is held out. A vocabulary
of 512 pieces is learnt from the rest, and a tiny model of the kind that the objective needs goes
300 steps of 16 rows. Expected: every held-out loss falls, that of causal-lm from 6.4 to 3.8 nats a
token. Ten to thirty seconds each.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from keifu.data.example import Example, Listed
from keifu.data.vocabulary import Vocabulary
from keifu.families.bert import Bert
from keifu.families.llama import Llama
from keifu.families.t5 import T5
from keifu.nn.part import build
from keifu.text.marks import Marks
from keifu.text.tokenizer import Tokenizer
from keifu.training import Trainer, evaluate
from keifu.training.loop import TrainOptions
from keifu.training.objectives import objectives
from keifu.training.optimizers.adamw import AdamW
from keifu.training.reading import numbered

ROLES = ("pad", "bos", "eos", "cls", "sep", "mask")
SPELT = (
    *(f"<{role}>" for role in ROLES),
    *("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "[NLU]", "[S2S]", "[NLG]"),
    *(f"<extra_id_{n}>" for n in range(32)),
)
SIZE, ROW = 512, 64
SMALL: dict[str, Any] = {"vocab": SIZE, "width": 48, "hidden": 96, "depth": 2, "heads": 4}
LLAMA = Llama(**SMALL, kv_heads=4, head_width=12, context=128)
BERT = Bert(**SMALL, context=128, task="pretrain")
SEQ2SEQ = T5(**SMALL, head_width=12, tied=False, context=128)
TRAINED: dict[str, Any] = {
    "causal-lm": LLAMA,
    "fill-in-the-middle": LLAMA,
    "prefix-lm": LLAMA,
    "masked-lm": BERT,
    "next-sentence": BERT,
    "sentence-order": BERT,
    "contrastive": Bert(**SMALL, context=128, task="encode"),
    "span-corruption": SEQ2SEQ,
    "denoising": SEQ2SEQ,
    "gap-sentences": SEQ2SEQ,
    "mixture-of-denoisers": SEQ2SEQ,
}
"""Objectives, each with a family whose models learn by it."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """What is learnt from, what is held out, and their vocabulary."""

    learnt: Listed
    held: Listed
    vocabulary: Vocabulary


def manual() -> Text:
    """Python's manual in rows of ROW tokens."""
    texts = [topics[name] for name in sorted(topics)]
    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel()
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=list(SPELT), show_progress=False)
    rust.train_from_iterator([t for n, t in enumerate(texts) if n % 10], trainer)
    tokenizer = Tokenizer(rust, Marks(named={role: n for n, role in enumerate(ROLES)}))
    sides: list[list[Example]] = [[], []]
    for number, text in enumerate(texts):
        ids = tokenizer.encode(text)
        rows = [ids[i : i + ROW] for i in range(0, len(ids) - ROW, ROW)]
        sides[number % 10 == 0] += [Example(ids=np.array(row, np.int64)) for row in rows]
    return Text(
        learnt=Listed(items=sides[0]),
        held=Listed(items=sides[1], shuffle=False),
        vocabulary=Vocabulary.of(tokenizer, context=128),
    )


def losses(name: str, text: Text, steps: int = 300) -> tuple[float, float]:
    """The held-out loss of one objective before and after."""
    objective: Any = objectives[name]()
    model: Any = build(objective.fitted(TRAINED[name].spec(), text.vocabulary))
    model.initialise(seed=0, std=0.08)
    read = objective.reader(text.vocabulary)
    held = [numbered(text.held, 16, read, seed=1)(n) for n in range(12)]
    before = evaluate(model, objective, held)[0]
    trainer = Trainer(
        model,
        objective,
        optimization=AdamW(lr=3e-3),
        options=TrainOptions(steps=steps, progress=__name__ == "__main__"),
    )
    trainer.fit(numbered(text.learnt, 16, read))
    return before, evaluate(model, objective, held)[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    read = manual()
    for chosen in sys.argv[1:] or TRAINED:
        first, last = losses(chosen, read)
        print(f"{chosen}: {first:.3f} -> {last:.3f}")
