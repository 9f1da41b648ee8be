"""Runs for tests of several processes: one function that a process of any crew runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from keifu.families import families
from keifu.nn.stack import StackModule
from keifu.training.batch import Sequences
from keifu.training.crew import ALONE, Crew
from keifu.training.crew_processes import Processes
from keifu.training.loop import Trainer, TrainOptions, evaluate
from keifu.training.objective import Loss
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.optimizers.adamw import AdamW
from keifu.training.parallel import Parallel
from keifu.training.pieces import Piece, load_pieces, save_pieces
from keifu.training.place import Place

STEPS = 3


def model(name: str) -> StackModule:
    """The family's tiny model, with weights that show a wrong gradient."""
    family = families[name].tiny()
    made = (replace(family, experts=4) if name == "mixtral" else family).spec().build()
    assert isinstance(made, StackModule)
    return made.initialise(0, std=0.3)


def batch(number: int) -> Sequences:
    """Rows whose number of tokens differs from batch to batch."""
    made = torch.Generator().manual_seed(number)
    lengths = (3 + number % 4, 5, 9)
    rows = [torch.randint(0, 60, (n,), generator=made) for n in lengths]
    return Sequences.of(rows)


@dataclass(frozen=True, kw_only=True)
class Poisoned(CausalLM):
    """Batch 3 has no finite loss: step 1, of which only the second process sees it, is left out."""

    def __call__(self, model: nn.Module, batch: Sequences) -> Loss:
        loss = super().__call__(model, batch)
        return replace(loss, total=loss.total * math.inf) if batch.lengths[0] == 6 else loss


def trainer(name: str, crew: Crew, *, steps: int = STEPS) -> Trainer[Sequences]:
    """Two batches a step, however many processes take them."""
    return Trainer(
        model(name),
        Poisoned(auxiliary={"balance": 0.1} if name == "mixtral" else {}),
        # A small eps makes of a gradient's last bit a step of any size.
        optimization=AdamW(lr=0.01, decay=0.1, eps=1e-3),
        options=TrainOptions(steps=steps, accumulate=2 // crew.world, clip=0.5),
        crew=crew,
    )


def ran(name: str, crew: Crew) -> tuple[list[tuple[float, float, int]], dict[str, Tensor], Any]:
    """What every step did, the weights put together, and the optimizer's state."""
    made = trainer(name, crew)
    history = made.fit(batch)
    assert [r.skipped for r in history] == [False, True, False]
    told = [(r.loss, r.norm, r.count) for r in history if not r.skipped]
    held = [batch(100 + crew.rank + k * crew.world) for k in range(2 // crew.world)]
    told.append((evaluate(made.model, made.objective, held, crew)[0], 0.0, 0))
    state, whole = made.state_dict(), crew.whole(made.model)
    weights = {} if whole is None else {n: p.detach() for n, p in whole.named_parameters()}
    return told, weights, state


def compared(
    mesh: Any, cases: list[tuple[str, Parallel]], folder: Path
) -> list[tuple[float, float, float]]:
    """Each case against one process alone: largest differences of losses and norms, of weights
    and of a run that another crew goes on with; and pieces that any crew reads to the bit."""
    found, alone = [], {name: ran(name, ALONE) for name, _ in cases}
    for number, (name, parallel) in enumerate(cases):
        crew = Processes(parallel)
        told, weights, state = ran(name, crew)
        steps = max(
            abs(a - b) / max(abs(b), 1.0)
            for mine, theirs in zip(told, alone[name][0], strict=True)
            for a, b in zip(mine, theirs, strict=True)
        )
        off = max((far(w, alone[name][1][n]) for n, w in weights.items()), default=0.0)
        found.append((steps, off, resumed(name, parallel, alone[name])))
        assert state["run"]["step"] == STEPS
        _pieces(name, crew, weights, folder / str(number), [p for n, p in cases if n == name])
    return found


def far(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def resumed(name: str, parallel: Parallel, alone: Any) -> float:
    """One process's state after its steps, gone on with by a crew: how its state differs then."""
    state = alone[2]
    crew = Processes(parallel)
    made = trainer(name, crew, steps=STEPS)
    made.load_state_dict(state)
    again = made.state_dict()["optimizer"]
    if not crew.first:
        return 0.0
    pairs = [
        (again["state"][i][entry], value)
        for i, entries in state["optimizer"]["state"].items()
        for entry, value in entries.items()
    ]
    return max(far(a, b) for a, b in pairs)


def _pieces(
    name: str, crew: Processes, weights: dict[str, Tensor], folder: Path, others: list[Parallel]
) -> None:
    """Saved by all at once; read by every other crew, and by one process alone, bit-equal."""
    save_pieces(folder, crew.pieces())
    held = [weights]
    dist.broadcast_object_list(held, 0)
    for parallel in others:
        other = Processes(parallel)
        other.prepare(model(name))
        pieces = other.pieces()
        for piece in pieces.values():
            piece.tensor.zero_()
        load_pieces(folder, pieces)
        for path, piece in pieces.items():
            assert torch.equal(piece.tensor, piece.place.own(held[0][path])), (path, parallel)
    whole = {n: Piece(Place.all_of(w.shape), torch.zeros_like(w)) for n, w in held[0].items()}
    load_pieces(folder, whole)
    assert all(torch.equal(whole[n].tensor, w) for n, w in held[0].items())
