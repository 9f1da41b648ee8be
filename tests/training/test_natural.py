"""Every family trains by naming it: two steps of each tiny model on its natural objective."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from keifu.core.errors import KeifuError
from keifu.data.example import Example, Listed
from keifu.families import families
from keifu.families.bert import Bert
from keifu.nn.part import build
from keifu.nn.table import Table
from keifu.training import Trainer
from keifu.training.loop import TrainOptions
from keifu.training.natural import natural
from keifu.training.objectives.word_vectors import WordVectors
from keifu.training.optimizers.sgd import SGD
from keifu.training.reading import numbered
from tests.training.vocabularies import examples, vocabulary

EXPECTED = {
    "albert": "SentenceOrder",
    "bart": "Denoising",
    "bert": "NextSentence",
    "deberta": "MaskedLM",
    "elmo": "BidirectionalLM",
    "ernie": "MaskedLM",
    "fasttext": "WordVectors",
    "llama": "CausalLM",
    "marian": "Seq2Seq",
    "mbart": "Denoising",
    "pegasus": "GapSentences",
    "rmt": "CausalLM",
    "rnn-speech": "CTC",
    "roberta": "MaskedLM",
    "switch": "Spans",
    "t5": "Spans",
    "t5-encoder": "Contrastive",
    "transformer": "Seq2Seq",
    "word2vec": "WordVectors",
}
TABLES = [name for name in families if isinstance(families[name].tiny().spec(), Table)]


def sounds(bins: int, classes: int) -> Listed:
    random = np.random.default_rng(0)
    return Listed(
        items=[
            Example(
                ids=np.zeros(0, np.int64),
                frames=random.standard_normal((12, bins)).astype(np.float32),
                target=1 + random.integers(0, classes - 1, 3),
            )
            for _ in range(4)
        ]
    )


@pytest.mark.parametrize("name", [name for name in families if name not in TABLES])
def test_two_steps_of_the_natural_objective(name: str) -> None:
    torch.set_num_threads(1)
    family: Any = families[name].tiny()
    objective = natural(family)
    assert type(objective).__name__ == EXPECTED.get(name, type(objective).__name__)
    words = vocabulary(getattr(family, "vocab", 96))
    model: Any = build(objective.fitted(family.spec(), words))
    model.initialise(seed=1, std=0.2)
    data: Any = examples()
    if name == "rnn-speech":
        data = sounds(family.bins, family.vocab)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    history = Trainer(
        model,
        objective,
        optimization=SGD(lr=0.05),
        options=TrainOptions(steps=2, accumulate=2),
    ).fit(numbered(data, 2, objective.reader(words)))
    assert [record.skipped for record in history] == [False, False]
    assert all(np.isfinite(record.loss) and record.count > 0 for record in history)
    moved = sum(not torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert moved > 0.6 * len(before), f"{moved} of {len(before)} parameters learn"


@pytest.mark.parametrize("name", TABLES)
def test_word_vectors_have_their_own_trainer_under_the_same_name(name: str) -> None:
    family: Any = families[name].tiny()
    objective = natural(family)
    assert isinstance(objective, WordVectors)
    options = replace(objective.options, min_count=1, epochs=2, threads=1)
    text = [[f"w{(i * j) % 7}" for i in range(9)] for j in range(1, 12)]
    found = replace(objective, options=options).train(text)
    assert found.vectors.words
    assert found.progress.done > 0
    with pytest.raises(KeifuError, match=r"WordVectors\.train"):
        objective(build(family.spec()), None)


def test_a_head_says_what_is_learnt() -> None:
    sizes: dict[str, Any] = {"vocab": 96, "width": 16, "hidden": 24, "depth": 1, "heads": 2}
    for task, expected in (
        ("fill-mask", "MaskedLM"),
        ("pretrain", "NextSentence"),
        ("classify", "Classification"),
        ("tag", "Classification"),
        ("answer", "Span"),
        ("encode", "Contrastive"),
    ):
        family = Bert(**sizes, context=40, task=task)
        assert type(natural(family)).__name__ == expected
        assert type(natural(family.spec())).__name__ == expected
    sparse: Any = natural(families["mixtral"].tiny())
    assert sparse.auxiliary["balance"] == 0.01
