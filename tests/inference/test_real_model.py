"""The default model against transformers, token by token: few prompts here, all of them in slow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import keifu
from benchmarks.accuracy import (
    CLEAR,
    PROMPTS,
    TIE,
    Reference,
    agreement,
    forced,
    greedy,
    text,
    transformers_on,
    windows,
)
from benchmarks.perplexity import perplexity


@pytest.fixture(scope="module")
def reference(smollm2: Path) -> Reference:
    return transformers_on(smollm2, torch.get_num_threads())


def test_agreement_counts_wide_margins_alone() -> None:
    """Three rows by hand: a clear one that is right, a clear one that is wrong, a near tie."""
    rows = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0], [0.5, 0.5001, 0.0]])
    found = agreement(rows, [1, 2, 0], margin=1e-3)
    assert (found.clear, found.same) == (2, 1)
    assert found.share == 0.5


def test_perplexity_of_even_odds() -> None:
    assert perplexity(lambda ids: [-0.6931471805599453] * (len(ids) - 1), [[1, 2], [3] * 5]) == (
        pytest.approx(2.0)
    )


def test_exact_greedy_of_one_prompt(smollm2: Path, reference: Reference) -> None:
    lm = keifu.load(str(smollm2), precision="exact", ctx=256)
    found = greedy(lm, reference, PROMPTS[:1], TIE)
    lm.close()
    assert found.same == found.clear > 50


def test_default_precision_of_one_prompt(smollm2: Path, reference: Reference) -> None:
    """Read as a prompt and made token by token: the plan's steps of many and of one row."""
    lm = keifu.load(str(smollm2), ctx=512)
    found = greedy(lm, reference, PROMPTS[1:2], CLEAR)
    found += forced(lm, reference, [lm.encode(text())[:128]])
    lm.close()
    assert found.clear > 80
    assert found.share >= 0.99


@pytest.mark.slow
def test_exact_greedy_of_all_prompts(smollm2: Path, reference: Reference) -> None:
    lm = keifu.load(str(smollm2), precision="exact", ctx=256)
    found = greedy(lm, reference, PROMPTS, TIE)
    lm.close()
    assert found.same == found.clear > 50 * len(PROMPTS)


@pytest.mark.slow
def test_default_precision_of_all_prompts_and_a_text(smollm2: Path, reference: Reference) -> None:
    lm = keifu.load(str(smollm2), ctx=1024)
    found = greedy(lm, reference, PROMPTS, CLEAR)
    found += forced(lm, reference, windows(lm.encode(text())[:2048]))
    lm.close()
    assert found.clear > 1000
    assert found.share >= 0.99
