"""Facts by heart: PEER beats a dense layer that uses as many parameters for each token.

    python recipes/million_experts.py

A fact is two symbols and a third that is drawn at random: 4,096 facts that no rule shortens. Both
models are one LLaMA block of width 32; the dense one's MLP has as many parameters as PEER's layer
uses for a token (its query network, its keys and the 32 neurons it finds), while PEER has 1,024
neurons to choose from. Expected: PEER knows every fact (accuracy 1.00), the dense model three of
four (0.72), and so PEER itself with 36 neurons in all. About two minutes on one core.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from keifu.families.llama import Llama
from keifu.families.peer import PEERLlama
from keifu.nn.losses import IGNORE
from keifu.nn.part import count
from keifu.nn.peer import PEER
from keifu.nn.stack import StackModule
from keifu.training import Sequences, Trainer, evaluate, shuffled
from keifu.training.loop import TrainOptions
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.optimizers.adam import Adam
from keifu.training.schedules.cosine import Cosine

SYMBOLS = 64
EXPERTS = PEERLlama(
    vocab=SYMBOLS, width=32, hidden=1, depth=1, heads=4, context=4,
    experts=1024, expert_heads=4, top=8, key_width=8,
)  # fmt: skip

FEW = replace(EXPERTS, experts=36)
"""The same queries with hardly anything to choose from."""


def active(peer: PEER) -> int:
    """Parameters that one token uses: everything but the experts that are not chosen."""
    return count(peer) - 2 * peer.width * (peer.experts - peer.active)


def dense() -> Llama:
    """The same block with an MLP of as many parameters, rounded up to whole neurons."""
    hidden = -(-active(EXPERTS.peer()) // (3 * EXPERTS.width))
    return Llama(vocab=SYMBOLS, width=32, hidden=hidden, depth=1, heads=4, context=4)


def facts() -> torch.Tensor:
    """(4096, 3): every pair of symbols and what belongs to it."""
    pairs = torch.cartesian_prod(torch.arange(SYMBOLS), torch.arange(SYMBOLS))
    third = torch.randint(0, SYMBOLS, (len(pairs), 1), generator=torch.Generator().manual_seed(7))
    return torch.cat([pairs, third], dim=1)


def batch(rows: torch.Tensor) -> Sequences:
    """Only the third symbol is learnt."""
    labels = rows.clone()
    labels[:, :-1] = IGNORE
    return Sequences.of(list(rows), list(labels))


def knows(family: Llama, steps: int = 1000) -> float:
    """Share of the facts that the model says right, after training on all of them."""
    model = family.spec().build()
    assert isinstance(model, StackModule)
    model.initialise(seed=0, std=0.2)
    known = facts()

    Trainer(
        model,
        CausalLM(),
        optimization=Adam(lr=1e-2),
        schedule=Cosine(total=steps, warmup=20, floor=0.02),
        options=TrainOptions(steps=steps, clip=1.0, progress=__name__ == "__main__"),
    ).fit(shuffled(list(known), 512, lambda some: batch(torch.stack(some))))
    return evaluate(model.eval(), CausalLM(), [batch(known)])[1]["accuracy"]


if __name__ == "__main__":
    print(f"{active(EXPERTS.peer())} parameters a token")
    print(f"PEER:  {knows(EXPERTS):.2f} of the facts")
    print(f"few:   {knows(FEW):.2f} of the facts ({FEW.experts} neurons)")
    print(f"dense: {knows(dense()):.2f} of the facts ({dense().hidden} gated neurons)")
