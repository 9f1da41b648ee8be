"""Transfer learning: another head on what was learnt, what is frozen stays, and it pays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from keifu.core.errors import KeifuError
from keifu.families import families
from keifu.nn.pair import PairModule
from keifu.nn.stack import StackModule
from keifu.nn.task_heads import Pooled, RowScores
from keifu.training import Pairs, Sequences, Trainer
from keifu.training.groups import Group, discriminative, layers
from keifu.training.loop import TrainOptions
from keifu.training.objectives.classification import Classification
from keifu.training.objectives.seq2seq import Seq2Seq
from keifu.training.optimizers.adam import Adam
from keifu.training.optimizers.adamw import AdamW
from keifu.training.transfer import attach, graft, only

FAMILIES = ("lstm", "rnn", "gru", "ulmfit", "gpt-2", "llama", "bert", "transformer", "t5")
JUDGE = Classification(head="classify")


def backbone(name: str) -> StackModule:
    """A stack of the family; of a pair its encoder."""
    model: Any = families[name].tiny().spec().build()
    model.initialise(3, std=0.1)
    stack = model.encoder if isinstance(model, PairModule) else model
    assert isinstance(stack, StackModule)
    return stack.eval()


def rows(count: int = 8) -> list[list[int]]:
    made = torch.Generator().manual_seed(0)
    return [torch.randint(1, 90, (3 + i,), generator=made).tolist() for i in range(count)]


def held(model: nn.Module) -> dict[str, bytes]:
    """Every parameter and buffer to the byte."""
    return {
        name: value.detach().contiguous().numpy().tobytes()
        for name, value in model.state_dict().items()
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_training_the_head_alone_leaves_every_byte_below_it(name: str) -> None:
    stack = backbone(name)
    batch = Sequences.of(rows(), [i % 3 for i in range(8)])
    width = stack.run(batch.ids, batch.step()).hidden.shape[1]
    head = RowScores(pool=Pooled(width=width, act=None, at=-1), count=3)
    model = attach(stack, head)
    before, source = held(model), held(stack)
    history = Trainer(
        model, JUDGE, optimization=AdamW(lr=0.05, decay=0.1), groups=only("heads.*"),
        options=TrainOptions(steps=25),
    ).fit(lambda number: batch)  # fmt: skip
    after = held(model)
    below = {n for n in after if not n.startswith("heads.")}
    assert all(after[n] == before[n] == source[n] for n in below)
    assert all(after[n] != before[n] for n in after.keys() - below)
    assert held(stack) == source
    assert history[-1].loss < history[0].loss
    everything = Trainer(
        model, JUDGE, optimization=Adam(lr=0.01), groups=discriminative(layers(model)),
        options=TrainOptions(steps=2),
    )  # fmt: skip
    everything.fit(lambda number: batch)
    moved = {n for n in below if held(model)[n] != after[n]}
    assert {n.split(".")[0] for n in moved} >= {"input", "blocks"}, "thawed, the rest learns too"


def test_a_pairs_encoder_can_stay_while_its_decoder_learns() -> None:
    model: Any = families["transformer"].tiny().spec().build()
    model.initialise(1, std=0.1)
    before = held(model)
    targets = [row[::-1] for row in rows()]
    Trainer(
        model, Seq2Seq(), groups=(Group(pattern="encoder.*", frozen=True), Group(pattern="*")),
        options=TrainOptions(steps=3),
    ).fit(lambda number: Pairs.of(rows(), targets))  # fmt: skip
    after = held(model)
    changed = {n for n in after if after[n] != before[n]}
    shared = "decoder.input.table.weight"  # the encoder's table under another name
    assert {n for n in after if n.startswith("decoder.")} - changed == {shared}
    assert not any(n.startswith("encoder.") for n in changed)
    assert layers(model)[0] == ("encoder.input.*",)
    assert layers(model)[-1][0].startswith("decoder.")


def test_a_graft_says_what_it_took_and_what_does_not_fit() -> None:
    lstm, other = families["lstm"], backbone("rnn")
    language: Any = lstm.tiny().spec().build()
    language.initialise(0)
    judge = attach(language, RowScores(pool=Pooled(width=24, act=None, at=-1), count=2))
    found = graft(judge, language)
    assert set(found.fresh) == {"heads.classify.out.weight", "heads.classify.out.bias"}
    assert found.left == ("head.bias",)
    assert set(found.taken) == set(judge.state_dict()) - set(found.fresh)
    with pytest.raises(KeifuError, match=r"\(128, 24\) in the trained model and \(32, 24\)"):
        graft(other, language)
    with pytest.raises(KeifuError, match="no parameter in common"):
        graft(nn.Linear(2, 2), other)


def test_reading_first_beats_random_weights_at_equal_steps() -> None:
    """An LSTM: the recipe's first case."""
    from recipes.transfer_learning import judged

    torch.set_num_threads(1)
    tuned, scratch = judged(30, read=450)
    assert tuned > 0.9
    assert scratch < tuned - 0.15


def test_knowing_one_cipher_helps_with_the_next() -> None:
    """An encoder and decoder: the recipe's second case."""
    from recipes.transfer_learning import deciphered

    torch.set_num_threads(1)
    tuned, scratch = deciphered(60, before=150)
    assert tuned > 0.9
    assert scratch < 0.5
