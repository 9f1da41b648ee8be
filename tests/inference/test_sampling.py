"""Sampling rules against transformers' logits processors."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from keifu.inference.request import ParameterError, Sampling
from keifu.inference.sampling import (
    History,
    choose,
    forbid,
    min_p,
    penalise,
    top_k,
    top_p,
    typical,
)


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
    assert choose(row, Sampling(temperature=0, logit_bias={4: 1.0}), History([]), None) == 4
    assert forbid(row, [0, 1]).isinf().tolist() == [True, True, False, False, False, False]


def test_frequencies_follow_the_distribution() -> None:
    row, made = torch.log(torch.tensor([0.5, 0.3, 0.2])), torch.Generator().manual_seed(0)
    drawn = [choose(row, Sampling(), History([]), made) for _ in range(4000)]
    share = torch.bincount(torch.tensor(drawn), minlength=3) / 4000
    assert torch.allclose(share, torch.tensor([0.5, 0.3, 0.2]), atol=0.03)


def test_the_whole_chain_equals_transformers() -> None:
    row, none = logits(7), torch.zeros(1, 0, dtype=torch.long)
    x = row[None].clone()
    for warper in (
        TemperatureLogitsWarper(0.7),
        TopKLogitsWarper(40),
        TopPLogitsWarper(0.9),
        MinPLogitsWarper(0.02),
    ):
        x = warper(none, x)
    allowed = set(x[0].isfinite().nonzero().flatten().tolist())
    made, settings = (
        torch.Generator().manual_seed(1),
        Sampling(temperature=0.7, top_k=40, top_p=0.9, min_p=0.02),
    )
    drawn = {choose(row, settings, History([]), made) for _ in range(600)}
    assert drawn <= allowed
    assert len(drawn) > len(allowed) / 2


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
