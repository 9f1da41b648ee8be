"""Sampling rules against transformers' logits processors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from keifu.core.errors import KeifuError
from keifu.inference.choosing import Chooser, choose, chosen, single
from keifu.inference.request import ParameterError, Sampling
from keifu.inference.sampling import (
    NEVER,
    History,
    forbid,
    min_p,
    penalise,
    top_k,
    top_p,
    typical,
)
from keifu.nn.kernels import native

NATIVE = pytest.mark.skipif(not native.available(), reason=native.why())


def logits(seed: int, vocab: int = 200) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("value", [0.05, 0.3, 0.9, 0.99])
def test_filters_keep_what_transformers_keeps(seed: int, value: float) -> None:
    row, none = logits(seed), torch.zeros(1, 0, dtype=torch.long)
    for ours, theirs in (
        (top_p(row, value), TopPLogitsWarper(value)),
        (min_p(row, value), MinPLogitsWarper(value)),
        (typical(row, value), TypicalLogitsWarper(value)),
        (top_k(row, int(value * 100)), TopKLogitsWarper(int(value * 100))),
    ):
        assert torch.equal(ours, theirs(none, row[None].clone())[0])


@pytest.mark.parametrize("rate", [0.7, 1.3])
def test_repetition_penalty_equals_transformers(rate: float) -> None:
    row, history = logits(1), History([3, 5, 5])
    history.add(9)
    seen = torch.tensor([[3, 5, 5, 9]])
    expected = RepetitionPenaltyLogitsProcessor(rate)(seen, row[None].clone())[0]
    assert torch.allclose(penalise(row, Sampling(repetition_penalty=rate), history), expected)


def test_presence_and_frequency_count_only_the_output() -> None:
    row, history = torch.zeros(10), History([1, 1, 1])
    for token in (2, 2, 3):
        history.add(token)
    got = penalise(row, Sampling(presence_penalty=0.5, frequency_penalty=0.25), history)
    assert got.tolist() == [0, 0, -1.0, -0.75, 0, 0, 0, 0, 0, 0]
    assert row.abs().sum() == 0, "the model's logits are left as they were"


def test_bias_and_forbidden_ids() -> None:
    row = torch.zeros(6)
    biased = penalise(row, Sampling(logit_bias={4: 1.0}), History([]))
    assert single(Chooser(Sampling(temperature=0)), 0, biased) == 4
    assert forbid(row, [0, 1]).isinf().tolist() == [True, True, False, False, False, False]


WAYS = [pytest.param("kernels", marks=NATIVE), "plain"]


def drawn(way: str, row: torch.Tensor, sampling: Sampling, count: int) -> list[int]:
    """What one output chooses of the same row at so many places."""
    chooser = Chooser(sampling)
    choice = chooser.plain if way == "plain" else lambda x, place: single(chooser, place, x)
    return [choice(row, place) for place in range(count)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_distribution(way: str, temperature: float) -> None:
    """Pearson's test with 199 degrees of freedom: 276 is passed once in 5,000."""
    row, count = logits(3), 6000
    made = drawn(way, row, Sampling(temperature=temperature, seed=1), count)
    wanted = count * (row.double() / temperature).softmax(-1)
    often = wanted > 5
    seen = torch.bincount(torch.tensor(made), minlength=200)
    bins = torch.cat([wanted[often], wanted[~often].sum()[None]])
    found = torch.cat([seen[often], seen[~often].sum()[None]])
    assert float(((found - bins) ** 2 / bins.clamp(min=1e-9)).sum()) < 276


@pytest.mark.parametrize("way", WAYS)
def test_seeds_and_places_draw_apart_and_a_seed_draws_again(way: str) -> None:
    row = torch.zeros(50_000)
    one = drawn(way, row, Sampling(seed=5), 300)
    assert one == drawn(way, row, Sampling(seed=5), 300)
    assert len(set(one)) > 290
    other = drawn(way, row, Sampling(seed=6), 300)
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 3
    assert sum(a == b for a, b in zip(one, other[1:], strict=False)) < 3
    assert drawn(way, row, Sampling(), 9) != drawn(way, row, Sampling(), 9)


def chain(sampling: Sampling) -> list[LogitsProcessor]:
    """transformers' warpers for the settings, in its order."""
    made: list[LogitsProcessor] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        made.append(TopKLogitsWarper(sampling.top_k))
    made += [TopPLogitsWarper(sampling.top_p), MinPLogitsWarper(sampling.min_p)]
    return [*made, TypicalLogitsWarper(sampling.typical_p)] if sampling.typical_p < 1 else made


CHAINS = [
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.5, "top_p": 0.95},
    {"top_k": 3},
    {"top_p": 0.0},
    {"min_p": 0.2},
    {"top_k": 40, "typical_p": 0.8},
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", CHAINS)
def test_the_whole_chain_equals_transformers(way: str, options: dict[str, float]) -> None:
    """What is kept is what transformers keeps, each as often as it says."""
    sampling, row = Sampling(seed=2, **options), logits(7)  # type: ignore[arg-type]
    x = row[None].clone()
    for warper in chain(sampling):
        x = warper(torch.zeros(1, 0, dtype=torch.long), x)  # type: ignore[arg-type, assignment]
    wanted = 1500 * x[0].softmax(-1)
    seen = torch.bincount(torch.tensor(drawn(way, row, sampling, 1500)), minlength=200)
    assert seen[wanted == 0].sum() == 0
    assert torch.all((seen - wanted).abs() < 5 * wanted.sqrt() + 5)


@NATIVE
@pytest.mark.parametrize("level", native.features())
@pytest.mark.parametrize("size", [1, 5, 61, 3000, 50_000])
def test_kernels_choose_what_the_plain_path_chooses(level: str, size: int) -> None:
    """One step of many rows; flat and steep ones, ties, forbidden tokens, every setting."""
    made, best = torch.Generator().manual_seed(size), native.current()
    rows = torch.randn(40, size, generator=made) * torch.tensor([0.1, 1, 3, 10])[:, None].repeat(
        10, 1
    )
    rows[1::5] = rows[1::5].round()
    rows[torch.rand(40, size, generator=made) < 0.2] = NEVER
    rows[:, size // 2] = 1.0
    every: list[dict[str, Any]] = [*CHAINS[:6], {}, {"temperature": 0.0}, {"temperature": 5.0}]
    choosers = [Chooser(Sampling(seed=i, **every[i % len(every)])) for i in range(40)]
    ids = torch.randperm(60_000, generator=made)[:size].sort().values
    for among in (None, ids):
        native.force(level)
        try:
            got = choose([(c, 3 * i, i) for i, c in enumerate(choosers)], rows, among=among)
        finally:
            native.force(best)
        pairs = enumerate(zip(choosers, rows, strict=True))
        assert got == [c.plain(row, 3 * i, among) for i, (c, row) in pairs]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_have_no_token_say_why(way: str, temperature: float) -> None:
    sampling = Sampling(temperature=temperature)
    assert drawn(way, torch.tensor([1.0, float("inf"), 2.0]), sampling, 1) == [1]
    none, broken = torch.full((20,), NEVER), logits(1)
    broken[17] = float("nan")
    for row, why in ((none, "forbid all"), (broken, "not numbers")):
        with pytest.raises(KeifuError, match=why):
            chosen(Chooser(sampling).plain(row, 0))
        with pytest.raises(KeifuError, match=why):
            single(Chooser(sampling), 0, row)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", -1),
        ("top_p", 1.5),
        ("top_k", -5),
        ("n", 10**6),
        ("seed", 2**70),
        ("logprobs", 10**6),
        ("max_tokens", -1),
        ("stop", ("",)),
        ("logit_bias", {1: 1000.0}),
    ],
)
def test_out_of_range_parameters_are_named(name: str, value: object) -> None:
    with pytest.raises(ParameterError) as caught:
        Sampling(**{name: value})  # type: ignore[arg-type]
    assert caught.value.parameter == name
    assert name in str(caught.value)
