"""Say again what stood eight tokens ago: MEGALODON's moving average is the delay line.

    OMP_NUM_THREADS=1 python recipes/delay.py

A row is random symbols; at each token the model says the one of eight tokens before. Attention
sees chunks of four, so it cannot look back so far. Expected: the whole model is right (accuracy
1.00). Its ablation, in which the average forgets all but the present token (decay 0), is not
(0.36; chance is 0.25 of four symbols): what else reaches across a chunk is the timestep norm, sums
over all the past, which tell single tokens apart only near a row's start. Half a minute on one
core.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from keifu.families.megalodon import Megalodon
from keifu.nn.averaging import AveragedAttention
from keifu.nn.cema import Coefficients, Released
from keifu.nn.losses import IGNORE
from keifu.nn.stack import Stack, StackModule
from keifu.training import Sequences, Trainer, evaluate
from keifu.training.loop import TrainOptions
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.optimizers.adam import Adam

SYMBOLS, LENGTH, DELAY, CHUNK = 4, 48, 8, 4


@dataclass(frozen=True)
class Forgetful(Released):
    """The authors' average without its memory."""

    def coefficients(self, given: Mapping[str, Tensor]) -> Coefficients:
        """|q| is 0."""
        made = super().coefficients(given)
        return dataclasses.replace(made, decay=torch.zeros_like(made.decay))


def rows(count: int, seed: int) -> Sequences:
    """`count` random rows; what is learnt at each token is the one DELAY before."""
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, SYMBOLS, (count, LENGTH), generator=made)
    labels = torch.full_like(ids, IGNORE)
    labels[:, DELAY + 1 :] = ids[:, : -DELAY - 1]
    return Sequences.of(list(ids), list(labels))


def forgetful(spec: Stack) -> Stack:
    """The same model, with averages that keep nothing."""
    blocks = []
    for block in spec.blocks:
        if isinstance(block.mixer, AveragedAttention):
            mixer = dataclasses.replace(block.mixer, form=Forgetful())
            block = dataclasses.replace(block, mixer=mixer)
        blocks.append(block)
    return dataclasses.replace(spec, blocks=tuple(blocks))


def accuracy(*, remembers: bool, steps: int = 250) -> float:
    """Share of right symbols in new rows, after training."""
    family = Megalodon(
        vocab=SYMBOLS, width=32, hidden=64, depth=2, heads=1, z=16, values=64, orders=8,
        chunk=CHUNK, groups=4, gated=True,
    )  # fmt: skip
    model = (family.spec() if remembers else forgetful(family.spec())).build()
    assert isinstance(model, StackModule)
    model.initialise(seed=0, std=0.1)
    trainer = Trainer(
        model,
        CausalLM(),
        optimization=Adam(lr=3e-3),
        options=TrainOptions(steps=steps, clip=1.0, progress=__name__ == "__main__"),
    )
    trainer.fit(lambda number: rows(32, seed=number))
    return evaluate(model, CausalLM(), [rows(256, seed=10**6)])[1]["accuracy"]


if __name__ == "__main__":
    for remembers in (True, False):
        who = "with its memory" if remembers else "without"
        print(f"{who}: {accuracy(remembers=remembers):.2f} of the symbols of {DELAY} tokens ago")
