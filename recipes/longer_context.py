"""Find a needle in a text four times longer than any that was trained on, by scaling rotary angles.

    python recipes/longer_context.py

A row has a marker with a value behind it somewhere among noise, and ends with the marker: the
value is asked for. A two-layer Llama learns it in rows of 32 tokens and is asked in rows of 128.
Unscaled it turns to angles it has never seen and fails (chance is 1 in 8). Dynamic NTK, YaRN and
linear scaling (position interpolation, Chen et al. 2023) change the angles and nothing else; the
16k models of 2023 were linear with a short fine-tuning at the new length. Measured once: 1.00 at
32 tokens; at 128 before and after 60 steps there: unscaled 0.24 and 0.62, linear 0.98 and 1.00,
dynamic NTK 0.73 and 0.99, YaRN 0.97 and 1.00.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from keifu.families.llama import Llama
from keifu.nn.losses import IGNORE
from keifu.nn.rotary import DynamicNTK, LinearScaling, Scaling, Unscaled, YaRN
from keifu.nn.stack import StackModule
from keifu.training import Sequences, Trainer, evaluate
from keifu.training.loop import TrainOptions
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.optimizers.adam import Adam
from keifu.training.schedules.cosine import Cosine

KEYS, VALUES, NOISE, PAIRS = 1, 8, 8, 1
SHORT, TIMES = 32, 4
LONG = SHORT * TIMES
MODEL = Llama(
    vocab=KEYS + VALUES + NOISE, width=64, hidden=128, depth=2, heads=2, context=SHORT,
    rope_base=20.0,
)  # fmt: skip
SCALINGS: dict[str, Scaling] = {
    "unscaled": Unscaled(),
    "linear": LinearScaling(TIMES),
    "dynamic NTK": DynamicNTK(1.0, SHORT),
    "YaRN": YaRN(TIMES, SHORT, beta_fast=8.0, beta_slow=1.0),
}


def rows(count: int, length: int, seed: int) -> Sequences:
    """`count` random rows of a length: a marked value among noise, then the marker again."""
    made = torch.Generator().manual_seed(seed)
    keys = torch.rand(count, KEYS, generator=made).argsort(1)[:, :PAIRS]
    values = torch.randint(KEYS, KEYS + VALUES, (count, PAIRS), generator=made)
    room = length - 2 * PAIRS
    ids = torch.randint(KEYS + VALUES, MODEL.vocab, (count, length), generator=made)
    places = 2 * torch.rand(count, room // 2, generator=made).argsort(1)[:, :PAIRS]
    ids.scatter_(1, places, keys).scatter_(1, places + 1, values)
    order = torch.rand(count, PAIRS, generator=made).argsort(1)
    ids[:, room::2], ids[:, room + 1 :: 2] = keys.gather(1, order), values.gather(1, order)
    labels = torch.full_like(ids, IGNORE)
    labels[:, room + 1 :: 2] = ids[:, room + 1 :: 2]
    return Sequences.of(list(ids), list(labels))


def built(scaling: Scaling, weights: StackModule | None = None) -> StackModule:
    """The model under a scaling, new or with another's weights."""
    model = replace(MODEL, scaling=scaling).spec().build()
    assert isinstance(model, StackModule)
    if weights is None:
        return model.initialise(seed=0, std=0.1)
    model.load_state_dict(weights.state_dict())
    return model


def trained(model: StackModule, length: int, steps: int, batch: int, lr: float) -> StackModule:
    """The model after so many steps at a length."""
    Trainer(
        model,
        CausalLM(),
        optimization=Adam(lr=lr),
        schedule=Cosine(total=steps),
        options=TrainOptions(steps=steps, clip=1.0, progress=__name__ == "__main__"),
    ).fit(lambda number: rows(batch, length, seed=number))
    return model


def found(model: StackModule, length: int) -> float:
    """Share of the needles that are found in new rows."""
    return evaluate(model, CausalLM(), [rows(128, length, seed=10**6)])[1]["accuracy"]


def short() -> StackModule:
    """A model that finds what it is asked for in short rows."""
    return trained(built(Unscaled()), SHORT, steps=400, batch=32, lr=3e-3)


if __name__ == "__main__":
    base = short()
    print(f"{SHORT} tokens: {found(base, SHORT):.2f} of the needles found")
    for name, scaling in SCALINGS.items():
        model = built(scaling, base)
        before = found(model, LONG)
        after = found(trained(model, LONG, steps=60, batch=16, lr=1e-3), LONG)
        print(f"{LONG} tokens, {name}: {before:.2f}, fine-tuned {after:.2f}")
