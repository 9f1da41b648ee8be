"""Beam search: length penalties by hand, and encoder-decoders against `generate`."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration

from keifu.core.errors import KeifuError
from keifu.families.bart import BART
from keifu.inference.admission import Admission
from keifu.inference.engine import Engine
from keifu.inference.request import Sampling
from keifu.inference.rules import Rules
from keifu.nn.heads import LMHead
from keifu.nn.pair import PairModule
from keifu.nn.stack import StackModule
from keifu.nn.state import state_bytes
from tests.families.pair_parity import converted_pair, engine_of, numbers, same_generate
from tests.families.parity import tokens
from tests.families.seq2seq import SIZES, randomised

pytestmark = pytest.mark.usefixtures("one_thread")

END = 1


def test_both_formulas_by_hand() -> None:
    """-6 over ten tokens: 10^0.6 = 3.98107, ((5 + 10) / 6)^0.6 = 1.73286; a length of one counts
    as one in both."""
    power, gnmt = Sampling(length_penalty=0.6), Sampling(length_penalty=0.6, length_formula="gnmt")
    assert power.normalised(-6.0, 10) == pytest.approx(-6 / 3.9810717, rel=1e-6)
    assert gnmt.normalised(-6.0, 10) == pytest.approx(-6 / 1.7328605, rel=1e-6)
    for sampling in (power, gnmt):
        assert sampling.normalised(-2.5, 1) == -2.5
    assert Sampling(length_penalty=0.0, length_formula="gnmt").normalised(-6.0, 10) == -6.0


def test_an_unknown_formula_is_refused() -> None:
    formula: Any = "wu"
    with pytest.raises(
        KeifuError, match=r'length_formula=\'wu\' is not allowed: "power" or "gnmt"'
    ):
        Sampling(length_formula=formula)


class Chain(nn.Module):
    """A head that knows what was said by its length alone: log-probabilities from a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: Tensor, table: Any) -> Tensor:
        return self.table[x[:, 0].long()]


class Places(nn.Module):
    """An input whose vector is the position."""

    table = None

    def forward(self, ids: Tensor, step: Any) -> Tensor:
        return step.positions[:, None].float()


def searched(formula: str, penalty: float) -> list[int]:
    """Two outputs are worth something: [1] with -1.0, and three tokens [2, 2, 1] with -1.8."""
    never = -30.0
    table = torch.full((8, 4), never)
    table[0, 1], table[0, 2] = -1.0, -0.6
    table[1, 2], table[2, 1] = -0.6, -0.6
    table[3:, 3] = -0.01
    # What is left goes to a token that nothing else uses, so that the rows are distributions.
    table[:, 0] = torch.log1p(-table[:, 1:].exp().sum(1).clamp(max=0.999999))
    model = StackModule(_nothing())
    model.input, model.head = Places(), Chain(table)
    engine = Engine(model, numbers(4), context=6, end_ids=(END,))
    asked = Sampling(beams=2, max_tokens=4, length_penalty=penalty, length_formula=formula)  # type: ignore[arg-type]
    try:
        return list(engine.submit([3], asked).result().tokens)
    finally:
        engine.close()


def _nothing() -> Any:
    from keifu.nn.inputs import Tokens
    from keifu.nn.stack import Stack

    return Stack(input=Tokens(vocab=4, width=1), blocks=(), head=LMHead(width=1, vocab=4))


@pytest.mark.parametrize(("formula", "penalty", "wanted"), [
    # -1.0 against -1.8: without a penalty the short one.
    ("power", 0.0, [1]),
    # -1.0 against -1.8 / 3^0.5 = -1.0392: the short one still; / 3^0.6 = -0.9311: the long one.
    ("power", 0.5, [1]),
    ("power", 0.6, [2, 2, 1]),
    # (8 / 6)^0.6 = 1.1884, -1.5147: the short one; ^2.1 = 1.8297, -0.9838: the long one.
    ("gnmt", 0.6, [1]),
    ("gnmt", 2.0, [1]),
    ("gnmt", 2.1, [2, 2, 1]),
])  # fmt: skip
def test_the_penalty_decides_as_calculated(formula: str, penalty: float, wanted: list[int]) -> None:
    assert searched(formula, penalty) == wanted


@pytest.fixture(scope="module")
def bart() -> tuple[PairModule, Any]:
    theirs = randomised(BartForConditionalGeneration(BartConfig(**SIZES)))
    return converted_pair(BART.from_hf(theirs.config.to_dict()), theirs), theirs


SEARCHES = [(1, 1.0, False), *product((2, 4), (0.6, 1.0, 2.0), (False, True, "never"))]
"""Beams, length penalty, when to stop; one beam has neither of the two."""


@torch.no_grad()
@pytest.mark.parametrize(("beams", "penalty", "early"), SEARCHES)
def test_an_encoder_decoders_search_is_generates(
    bart: tuple[PairModule, Any], beams: int, penalty: float, early: Any
) -> None:
    settings: dict[str, Any] = {
        "max_new_tokens": 12, "forced_eos_token_id": None, "decoder_start_token_id": 2,
    }  # fmt: skip
    asked: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}
    if beams > 1:
        more = {"length_penalty": penalty, "early_stopping": early}
        settings |= {"num_beams": beams, "num_return_sequences": beams, **more}
        asked |= {"beams": beams, "n": beams, **more}
    ours, theirs = bart
    same_generate(ours, theirs, 96, Rules(start=(2,)), settings, Sampling(**asked))


@torch.no_grad()
def test_searches_that_find_no_room_wait_for_the_others(
    bart: tuple[PairModule, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four searches of four beams at once in a pool that holds little more than one: each gives
    what it gives alone, and all room comes back; one that does not fit alone says what to do."""
    ours, _ = bart
    sources = [tokens(90, 1, n, seed=n)[0] + 2 for n in (5, 9, 3, 7)]
    asked = Sampling(beams=4, max_tokens=40, length_penalty=0.0)

    def engine(pages: int) -> Engine:
        budget = state_bytes(ours.spec.entries(), torch.float32)[1] * 32 * pages
        return engine_of(ours, 96, Rules(start=(2,)), budget=budget, parallel=4)

    small, large = engine(9), engine(64)
    postponed: list[Any] = []
    real = Admission.postpone
    monkeypatch.setattr(Admission, "postpone", lambda q, s: (postponed.append(s), real(q, s)))
    try:
        wanted = [large.submit(s.tolist(), asked).result().tokens for s in sources]
        streams = [small.submit(s.tolist(), asked) for s in sources]
        assert [s.result().tokens for s in streams] == wanted
        assert small.pool.free_tokens == 9 * 32
        assert postponed, "the pool was too large to tell"
    finally:
        small.close()
        large.close()
    tight = engine(5)
    try:
        with pytest.raises(KeifuError, match="a search with 4 beams finds no room"):
            tight.submit(sources[0].tolist(), asked).result()
    finally:
        tight.close()
