"""Find the marked symbol: a Llama of short texts goes on to longer ones once its rotary is scaled.

    python recipes/needle.py
    python recipes/needle.py --save finder && keifu probe needle finder/base finder/scaled

A row is random symbols, one of them marked; at its end the model says which (the passkey test of
Mohtashami & Jaggi 2023, arXiv 2305.16300). Two layers of width 64 learn it on rows of 32. Rows of
128 have positions that they have never seen. Linear scaling (Chen et al. 2023, arXiv 2306.15595)
divides positions by four, so that none is new, and needs a tenth of the training again, on the
longer rows. The base model gets as much further training, on its short rows. Expected: both find
all needles of 32 symbols; of those of 128 the base finds 0.39 and the scaled one all. Two minutes
on one core.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from keifu.data.symbolic import Needle
from keifu.families import save_model
from keifu.families.llama import Llama
from keifu.nn.losses import IGNORE
from keifu.nn.stack import StackModule
from keifu.text.symbols import symbols
from keifu.training import Sequences, Trainer, evaluate
from keifu.training.loop import TrainOptions
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.optimizers.adam import Adam

SHORT, LONG = 32, 128
TASK = Needle(kinds=8, length=SHORT)
CONFIG = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 10,
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": LONG,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
SCALING = {"rope_type": "linear", "factor": LONG / SHORT}
BASE, SCALED = Llama.from_hf(CONFIG), Llama.from_hf({**CONFIG, "rope_scaling": SCALING})


def rows(length: int, count: int, seed: int) -> Sequences:
    """`count` random rows, marked anywhere."""
    drawn = replace(TASK, length=length).draw(count, seed)
    ids, labels = torch.from_numpy(drawn.ids), torch.from_numpy(drawn.labels(IGNORE))
    return Sequences.of(list(ids), list(labels))


def train(family: Llama, length: int, steps: int, start: StackModule | None = None) -> StackModule:
    """A model trained on rows of a length, from another one's weights if there is one."""
    model = family.spec().build()
    assert isinstance(model, StackModule)
    model.initialise(seed=0, std=0.1)
    if start is not None:
        model.load_state_dict(start.state_dict())
    trainer = Trainer(
        model,
        CausalLM(),
        optimization=Adam(lr=2e-3),
        options=TrainOptions(steps=steps, clip=1.0, progress=__name__ == "__main__"),
    )
    seed = 0 if start is None else 10**5
    trainer.fit(lambda number: rows(length, 64, seed + number))
    return model


def accuracy(model: StackModule, length: int) -> float:
    """Share of needles found in new rows."""
    return evaluate(model, CausalLM(), [rows(length, 256, seed=10**6)])[1]["accuracy"]


def both(steps: int = 1500) -> dict[str, StackModule]:
    """The model of short rows, and the one that goes on with scaled positions."""
    base = train(BASE, SHORT, steps)
    return {
        "base": train(BASE, SHORT, steps // 10, base),
        "scaled": train(SCALED, LONG, steps // 10, base),
    }


def save(family: Llama, model: StackModule, folder: Path) -> None:
    """A checkpoint that `keifu probe needle` can ask."""
    save_model(folder, family, model, symbols(TASK.symbols(), other="?"))
    TASK.save(folder)


if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--save", type=Path, help="keep both in folders of their names here")
    given = flags.parse_args()
    for name, model in both().items():
        found = ", ".join(f"{accuracy(model, n):.2f} of {n}" for n in (SHORT, LONG))
        print(f"{name}: {found} symbols")
        if given.save:
            save(BASE if name == "base" else SCALED, model, given.save / name)
