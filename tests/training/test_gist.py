"""A tiny model learns to press prompts into a gist token, and answers from its cache."""

from __future__ import annotations

import pytest
import torch

from keifu.core.errors import KeifuError
from keifu.data.gist import Example, row, source
from keifu.families.t5 import T5
from keifu.inference.engine import Engine
from keifu.inference.gist import compress
from keifu.inference.request import Sampling
from keifu.nn.gist import gisted
from keifu.nn.losses import IGNORE
from keifu.nn.masks import Gist, Landmarks, Severed
from keifu.nn.pair import Pair, PairModule
from keifu.training import Sequences
from keifu.training.batch import Pairs
from keifu.training.objectives.seq2seq import Seq2Seq
from recipes.gist import GIST, accuracy, examples, trained
from tests.families.pair_parity import numbers


def test_rows_by_hand() -> None:
    example = Example(prompt=(5, 6), input=(7,), output=(8, 1))
    made = row(example, 9, 2)
    assert made.ids == (5, 6, 9, 9, 7, 8, 1)
    assert made.labels == (*[IGNORE] * 5, 8, 1)
    assert made.landmarks == Landmarks(gist=(2, 4))
    assert source(example, 9).ids == (5, 6, 9, 7)
    assert row(Example(prompt=(5,), output=(1,)), 9).ids == (5, 9, 1)
    for wrong, why in (((5, 9), "has the gist token 9"), ((), "a prompt and an output")):
        with pytest.raises(KeifuError, match=why):
            row(Example(prompt=wrong, output=(1,)), 9)
    with pytest.raises(KeifuError, match="1 or more"):
        row(example, 9, 0)
    with pytest.raises(KeifuError, match="landmarks of 1 rows for 2"):
        Sequences.of([[1], [2]], landmarks=[Landmarks()])


def test_a_gist_token_learns_to_carry_prompts_that_were_never_seen() -> None:
    """Held-out prompts: the gist beats the negative control, and its cache says the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = trained(Gist(), steps=140)
        assert accuracy(model, 256) > 0.95
        assert accuracy(trained(Severed(), steps=30), 256) < 0.4
        engine = Engine(model, numbers(GIST + 1), context=64, budget=1 << 22, gist=GIST)
        held = examples(12, seed=10**7)
        said = []
        for example in held:
            kept = compress(engine, [*example.prompt, GIST])
            assert (kept.length - kept.tokens, kept.tokens) == (26, 1)
            asked = Sampling(max_tokens=1, temperature=0)
            said.append(engine.submit(example.input, asked, past=kept).result().tokens)
        engine.close()
        assert sum(s == e.output for s, e in zip(said, held, strict=True)) >= 11
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("mask", "sees"), [(Gist(), True), (Severed(), False)])
def test_a_pairs_loss_depends_on_the_prompt_through_the_gist_alone(mask: Gist, sees: bool) -> None:
    """Another prompt is another loss where the gist tokens are seen; the control knows nothing."""
    spec = T5.tiny().spec()
    assert isinstance(spec, Pair)
    made = gisted(spec, mask).build()
    assert isinstance(made, PairModule)
    made.initialise(seed=1, std=0.3)
    example = Example(prompt=(5, 6, 7), input=(8, 9), output=(3, 1))
    read = source(example, 95, 2)
    batch = Pairs(
        source=Sequences.of([read.ids, (4, 2)], landmarks=[read.landmarks, Landmarks()]),
        target=Sequences.of([(0, *example.output), (0, 2)]),
    )
    alone = Seq2Seq()(made, batch).total
    changed = source(Example(prompt=(50, 61, 72), input=(8, 9), output=(3, 1)), 95, 2)
    other = Pairs(
        source=Sequences.of([changed.ids, (4, 2)], landmarks=[changed.landmarks, Landmarks()]),
        target=batch.target,
    )
    with torch.no_grad():
        apart = abs(float(Seq2Seq()(made, other).total - alone))
    assert (apart > 1e-4) == sees


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_recipe_does_what_it_says() -> None:
    whole, gist, neither = (accuracy(trained(mask)) for mask in (None, Gist(), Severed()))
    assert min(whole, gist) > 0.98
    assert neither < 0.35
