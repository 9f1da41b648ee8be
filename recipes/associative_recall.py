"""Look up what a symbol was paired with: Hyena learns it, with filters of three taps it does not.

    python recipes/associative_recall.py
    python recipes/associative_recall.py --save recaller && keifu probe recall recaller

A row tells six keys with a value each, then twelve blanks, then the keys in another order; the
values that follow them are learnt (the recall task of Poli et al. 2023, section 4.1, with every
key asked for). Both networks are HyenaDNA's two layers of width 64 and see the same rows. In the
second the window of every filter has fallen to a hundredth after three taps, so nothing crosses
the blanks. Expected: the first gets about 0.97 of the values of new rows right, the second
hardly more than chance (1 in 6). About two minutes on one core.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from keifu.data.symbolic import AssociativeRecall
from keifu.families import families, save_model
from keifu.nn.hyena import Hyena
from keifu.nn.losses import IGNORE
from keifu.nn.stack import Stack, StackModule
from keifu.text.symbols import symbols
from keifu.training import Sequences, Trainer, evaluate
from keifu.training.loop import TrainOptions
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.optimizers.adam import Adam
from keifu.training.schedules.cosine import Cosine

TASK = AssociativeRecall(keys=6, values=6, pairs=6, lag=12)
LENGTH = 4 * TASK.pairs + TASK.lag
FAMILY = families["hyena"](
    vocab=len(TASK.symbols()), width=64, hidden=128, depth=2, context=LENGTH, filter_width=32,
    frequency=1.0,
)  # fmt: skip


def rows(count: int, seed: int) -> Sequences:
    """`count` random rows."""
    drawn = TASK.draw(count, seed)
    ids, labels = torch.from_numpy(drawn.ids), torch.from_numpy(drawn.labels(IGNORE))
    return Sequences.of(list(ids), list(labels))


def spec(taps: int | None = None) -> Stack:
    """The network; its filters fade within so many taps, or reach over all of a row."""
    whole = FAMILY.spec()
    assert isinstance(whole, Stack)
    if taps is None:
        return whole
    share, blocks = taps / (LENGTH - 1), []
    for block in whole.blocks:
        assert isinstance(block.mixer, Hyena)
        short = replace(block.mixer.filter, fast=share, slow=share, shift=0.0)
        blocks.append(replace(block, mixer=replace(block.mixer, filter=short)))
    return replace(whole, blocks=tuple(blocks))


def train(taps: int | None = None, steps: int = 1500) -> StackModule:
    """A trained network."""
    model = spec(taps).build()
    assert isinstance(model, StackModule)
    model.initialise(seed=0, std=0.1)
    trainer = Trainer(
        model,
        CausalLM(),
        optimization=Adam(lr=5e-3),
        schedule=Cosine(total=steps),
        options=TrainOptions(steps=steps, clip=1.0, progress=__name__ == "__main__"),
    )
    trainer.fit(lambda number: rows(32, seed=number))
    return model


def accuracy(model: StackModule) -> float:
    """Share of right values in new rows."""
    return evaluate(model, CausalLM(), [rows(256, seed=10**6)])[1]["accuracy"]


def save(model: StackModule, folder: Path) -> None:
    """A checkpoint that `keifu probe recall` can ask; short filters have no published form."""
    save_model(folder, FAMILY, model, symbols(TASK.symbols(), other="_"))
    TASK.save(folder)


if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--save", type=Path, help="train the first alone, and keep it here")
    given = flags.parse_args()
    whole = train()
    print(f"filters over the whole row: {accuracy(whole):.2f} of the values right")
    if given.save:
        save(whole, given.save)
    else:
        print(f"filters of three taps: {accuracy(train(taps=3)):.2f}")
