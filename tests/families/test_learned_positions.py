"""More tokens than learnt positions: one line, from the module and from the engine."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.families import Family, families
from keifu.inference.engine import Engine
from keifu.inference.request import Sampling
from keifu.nn.inputs import Tokens
from keifu.nn.pair import Pair
from keifu.nn.part import Part
from keifu.nn.positions import Learned
from keifu.nn.stack import Stack, StackModule
from keifu.nn.step import fresh_step
from tests.families.parity import DECODERS


def stacks(spec: Part) -> Sequence[Stack]:
    match spec:
        case Stack():
            return [spec]
        case Pair():
            return [spec.encoder, spec.decoder]
    return []


def learnt(spec: Stack) -> int | None:
    """How many positions a stack has learnt; None: it has no such table."""
    positions = spec.input.positions if isinstance(spec.input, Tokens) else None
    return positions.length if isinstance(positions, Learned) else None


CASES = [
    (name, index)
    for name in families
    for index, spec in enumerate(stacks(families[name].tiny().spec()))
    if learnt(spec) is not None
]
NAMES = {name for name, _ in CASES}


def test_the_families_are_those_that_learn_positions() -> None:
    published = "albert bart bert camembert ernie gpt-1 gpt-2 gpt-3 mbart opt roberta xlm-roberta"
    assert set(published.split()) <= NAMES


@pytest.mark.parametrize(("name", "index"), CASES)
@torch.no_grad()
def test_the_module_takes_its_last_position_and_refuses_the_next(name: str, index: int) -> None:
    spec = stacks(families[name].tiny().spec())[index]
    model, most = spec.build(), learnt(spec)
    assert isinstance(model, StackModule)
    assert most is not None
    model.initialise(seed=0).eval()
    table = model.input.get_submodule("positions")
    assert table(torch.arange(most)).isfinite().all()
    with pytest.raises(KeifuError, match=f"{most + 1} tokens is longer than the {most} pos") as why:
        model.input(torch.ones(most + 1, dtype=torch.long), fresh_step([most + 1]))
    assert "\n" not in str(why.value)


class Ids:
    """As much of a tokenizer as an engine asks for before it refuses."""

    def __init__(self, vocab: int) -> None:
        self.vocab_size = vocab


ALONE = [name for name in DECODERS if name in NAMES]
"""Of one stack: a pair's source is bounded where pairs are tested."""


@pytest.mark.parametrize("name", ALONE)
def test_the_engine_refuses_before_it_runs(name: str) -> None:
    family: Family = families[name].tiny()
    spec = family.spec()
    assert isinstance(spec, Stack)
    model, most = spec.build(), learnt(spec)
    assert isinstance(model, StackModule)
    assert most is not None
    assert family.context <= most
    ids = Ids(spec.input.vocab)  # type: ignore[attr-defined]
    engine = Engine(model, ids, context=family.context, budget=1 << 24)  # type: ignore[arg-type]
    with pytest.raises(ContextLengthError, match=f"the context holds {family.context}"):
        engine.submit([1] * (family.context + 1), Sampling(max_tokens=1))
    with pytest.raises(ContextLengthError, match="the context holds"):
        engine.submit([1], Sampling(max_tokens=family.context))
