"""Speculation is exact: what is drawn through an engine has the model's distribution.

Every continuation of three tokens out of four is counted over seeded outputs and compared with the
products of the model's own softmaxes, which no engine, state or draft has been near.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch

from keifu.inference.drafters import drafters
from keifu.inference.engine import Engine
from keifu.inference.request import Sampling
from keifu.inference.sequence import Sequence as Output
from keifu.inference.speculation import Draft, Guide
from keifu.nn.stack import StackModule
from keifu.nn.state import StatePool
from tests.inference.test_engine import byte_tokenizer
from tests.inference.test_speculation import built, eager, nearly

pytestmark = pytest.mark.usefixtures("one_thread")

LETTERS = (3, 4, 5, 6)
HOT, DRAWS, AT_ONCE = 6.0, 1024, 64
BOUND = 103.4
"""A chi-square of 63 degrees of freedom is larger once in 1,000; the seeds are fixed."""
FAR = 0.125
"""Total variation: of 1,024 draws over 64 even cells it is 0.099 at the mean, with a deviation of
0.009 (sums of |binomial - mean|); uneven ones give less."""


def prompt() -> list[int]:
    """Each row of three letters comes at least once, so that lookup always finds one."""
    text: list[int] = []
    for row in itertools.product(LETTERS, repeat=3):
        if not any(tuple(text[i : i + 3]) == row for i in range(len(text))):
            text += row
    return text


@pytest.fixture(scope="module")
def model() -> StackModule:
    return built("llama")


@pytest.fixture(scope="module")
def expected(model: StackModule) -> dict[tuple[int, ...], float]:
    """The chance of each continuation."""
    cells = list(itertools.product(LETTERS, repeat=3))
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt(), *cell] for cell in cells])).logits
    assert logits is not None
    rows = (logits[:, -4:-1, list(LETTERS)] / HOT).log_softmax(-1)
    return {
        cell: float(sum(rows[i, k, LETTERS.index(t)] for k, t in enumerate(cell)).exp())
        for i, cell in enumerate(cells)
    }


def draw(model: StackModule, draft: Draft | None) -> tuple[Counter[tuple[int, ...]], int, int]:
    """How often each continuation came; tokens guessed, and those that were right."""
    bias = {t: 100.0 if t in LETTERS else -100.0 for t in range(96)}
    engine = Engine(
        model, byte_tokenizer(), context=160, parallel=AT_ONCE, budget=1 << 26, draft=draft
    )
    counts: Counter[tuple[int, ...]] = Counter()
    guessed = right = 0
    for first in range(0, DRAWS, AT_ONCE):
        asked: dict[str, Any] = {"max_tokens": 3, "temperature": HOT, "logit_bias": bias}
        done = engine.submit(prompt(), Sampling(n=AT_ONCE, seed=first, **asked)).result()
        counts.update(choice.tokens for choice in done.choices)
        guessed += done.usage.drafted_tokens
        right += done.usage.accepted_tokens
    engine.close()
    return counts, guessed, right


def apart(
    counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]
) -> tuple[float, float]:
    """Chi-square and total variation between what came and what should."""
    assert set(counts) <= set(expected)
    square = sum((counts[c] - DRAWS * p) ** 2 / (DRAWS * p) for c, p in expected.items())
    return square, sum(abs(counts[c] / DRAWS - p) for c, p in expected.items()) / 2


def test_cells_are_large_enough_to_count(expected: dict[tuple[int, ...], float]) -> None:
    assert sum(expected.values()) == pytest.approx(1.0, abs=1e-5)
    assert min(expected.values()) * DRAWS > 3


def drafting(name: str) -> Draft:
    other = nearly("llama")
    pool = StatePool(other.spec.entries(), budget=1 << 24, slots=72)
    guide = Guide(name="g", model=other, tokenizer=byte_tokenizer(), pool=pool, context=160)
    argument = {"draft": "near", "early-exit": "1"}.get(name, "")
    return eager(drafters[name].of(argument, lambda ref: guide))


@pytest.mark.parametrize("name", ["none", *drafters])
def test_drawn_continuations_have_the_models_distribution(
    model: StackModule, expected: dict[tuple[int, ...], float], name: str
) -> None:
    counts, guessed, right = draw(model, None if name == "none" else drafting(name))
    square, variation = apart(counts, expected)
    assert square < BOUND
    assert variation < FAR
    if name != "none":  # guesses were made, and both kinds of outcome were met
        assert guessed > DRAWS / 2
        assert DRAWS / 20 < right < guessed


def test_a_rule_that_trusts_guesses_is_found_out(
    model: StackModule,
    expected: dict[tuple[int, ...], float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = Output.next

    def trusting(self: Output, logits: torch.Tensor, guess: int | None = None) -> Any:
        if guess is None:
            return own(self, logits, guess)
        self.accepted += 1
        return self.accept(guess, logits)

    monkeypatch.setattr(Output, "next", trusting)
    counts, _, _ = draw(model, drafting("lookup"))
    square, variation = apart(Counter({c: counts[c] for c in expected}), expected)
    assert square > 2 * BOUND
    assert variation > 2 * FAR
