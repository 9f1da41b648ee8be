"""Copy the symbols among noise: Mamba, which chooses what to remember, learns it and S4D does not.

    python recipes/selective_copying.py
    python recipes/selective_copying.py --save copier && keifu probe copying copier/mamba

A row has four symbols at random places among 28 blanks, then a sign four times, at which the
symbols must come again in their order; those alone are learnt (Gu & Dao 2023, section 4.1). Both
models have two layers of width 32 and see the same rows. Where the symbols stand differs from row
to row, so a convolution that is the same for all rows cannot align them. Expected: Mamba gets
0.98 of new rows' symbols right, S4D about 0.6. About a minute on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from keifu.data.symbolic import SelectiveCopying
from keifu.families import Family, save_model
from keifu.families.mamba import MambaFamily
from keifu.families.s4 import S4Family
from keifu.nn.losses import IGNORE
from keifu.nn.stack import StackModule
from keifu.text.symbols import symbols
from keifu.training import Sequences, Trainer, evaluate
from keifu.training.loop import TrainOptions
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.optimizers.adam import Adam

TASK = SelectiveCopying(kinds=8, count=4, length=32)
MODELS: dict[str, Family] = {
    "mamba": MambaFamily(vocab=10, width=32, depth=2, states=8),
    "s4d": S4Family(vocab=10, width=32, depth=2, states=16, mode="diag", rule="zoh"),
}


def rows(count: int, seed: int) -> Sequences:
    """`count` random rows."""
    drawn = TASK.draw(count, seed)
    ids, labels = torch.from_numpy(drawn.ids), torch.from_numpy(drawn.labels(IGNORE))
    return Sequences.of(list(ids), list(labels))


def train(name: str, steps: int = 700) -> StackModule:
    """A trained model."""
    model = MODELS[name].spec().build()
    assert isinstance(model, StackModule)
    model.initialise(seed=0, std=0.2)
    trainer = Trainer(
        model,
        CausalLM(),
        optimization=Adam(lr=3e-3),
        options=TrainOptions(steps=steps, clip=1.0, progress=__name__ == "__main__"),
    )
    trainer.fit(lambda number: rows(32, seed=number))
    return model


def accuracy(model: StackModule) -> float:
    """Share of right symbols in new rows."""
    return evaluate(model, CausalLM(), [rows(256, seed=10**6)])[1]["accuracy"]


def save(name: str, model: StackModule, folder: Path) -> None:
    """A checkpoint that `keifu probe copying` can ask."""
    save_model(folder, MODELS[name], model, symbols(TASK.symbols(), other="_"))
    TASK.save(folder)


if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--save", type=Path, help="keep both in folders of their names here")
    given = flags.parse_args()
    for name in MODELS:
        made = train(name)
        print(f"{name}: {accuracy(made):.2f} of the symbols right")
        if given.save:
            save(name, made, given.save / name)
