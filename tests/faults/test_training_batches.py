"""Faults 45 and 52: rows with nothing to learn, and one step however its rows are laid out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.data.example import Example, Listed
from keifu.families import families
from keifu.nn.part import build
from keifu.training import Trainer
from keifu.training.loop import TrainOptions
from keifu.training.natural import natural
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.optimizers.sgd import SGD
from keifu.training.reading import numbered
from tests.training.models import transformer
from tests.training.vocabularies import examples, vocabulary

torch.set_num_threads(1)
WORDS = vocabulary()
PLAIN = vocabulary(prefix=(), suffix=())


def weights(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", ["llama", "bert", "albert", "t5", "bart", "pegasus", "ernie"])
def test_52_one_batch_of_eight_two_of_four_and_eight_of_one_are_one_step(name: str) -> None:
    """Ragged rows, each masked and damaged by its own number."""
    family: Any = families[name].tiny()
    objective = natural(family)
    read, texts, found = objective.reader(WORDS), examples(8, length=24), []
    for size in (8, 4, 1):
        model: Any = build(family.spec())
        model.initialise(seed=1, std=0.2)
        options = TrainOptions(steps=2, accumulate=8 // size, clip=None)
        trainer = Trainer(model, objective, optimization=SGD(lr=0.1), options=options)
        history = trainer.fit(numbered(texts, size, read, seed=5))
        found.append(([r.loss for r in history], [r.count for r in history], weights(model)))
    for losses, counts, state in found[1:]:
        assert losses == pytest.approx(found[0][0], abs=1e-5)
        assert counts == found[0][1]
        torch.testing.assert_close(state, found[0][2], atol=1e-5, rtol=1e-5)


def test_52_packing_and_padding_are_one_loss_and_gradient() -> None:
    random = np.random.default_rng(0)
    parts = [random.integers(0, 23, n) for n in (5, 9, 2, 7)]
    lengths = tuple(map(len, parts))
    packed = Listed(items=[Example(ids=np.concatenate(parts), pieces=lengths)], shuffle=False)
    model = transformer()
    loss = CausalLM()(model, numbered(packed, 1, CausalLM().reader(PLAIN))(0))
    ours = torch.autograd.grad(loss.total, list(model.parameters()))
    grid = torch.zeros(4, 9, dtype=torch.long)
    mask = torch.zeros(4, 9, dtype=torch.long)
    for row, part in enumerate(parts):
        grid[row, : len(part)], mask[row, : len(part)] = torch.from_numpy(part), 1
    logits = model(grid, attention_mask=mask).logits
    assert logits is not None
    labels = torch.where(mask.bool(), grid, -100)[:, 1:]
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    torch.testing.assert_close(loss.total, expected, atol=1e-5, rtol=1e-5)
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "bart", "roberta", "t5-encoder"])
def test_45_what_has_nothing_to_learn_is_left_out_and_counted(name: str) -> None:
    """Empty texts and all-masked ones among others: no NaN, and the loss of the others alone."""
    family: Any = families[name].tiny()
    objective = natural(family)
    bare = [Example(ids=one.ids) for one in examples(2).items]
    hidden = Example(ids=bare[0].ids[:0])
    if name == "llama":
        hidden = Example(ids=bare[0].ids, keep=np.zeros(len(bare[0].ids), bool))
    model: Any = build(family.spec())
    model.initialise(seed=1, std=0.2)
    read = objective.reader(WORDS)
    with_lost = numbered(Listed(items=[*bare, hidden], shuffle=False), 3, read)(0)
    loss = objective(model, with_lost)
    assert math.isfinite(loss.total.item())
    assert loss.metrics["dropped"] == (1.0, 3.0)
    others = objective(model, numbered(Listed(items=bare, shuffle=False), 2, read)(0))
    assert loss.count == others.count
    if name != "bert":  # whose second texts come from all examples
        torch.testing.assert_close(loss.total, others.total)
    only = numbered(Listed(items=[hidden, hidden], shuffle=False), 2, read)(0)
    none = objective(model, only)
    if name != "t5-encoder":
        assert (none.count, none.total.item()) == (0, 0.0)
        none.total.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(not g.any() for g in grads)
        trainer = Trainer(model, objective, options=TrainOptions(steps=1))
        with pytest.raises(KeifuError, match="no item to learn from"):
            trainer.fit(lambda number: only)
