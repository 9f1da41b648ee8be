"""Hyena learns associative recall, and filters cut to three taps do not (minutes)."""

from __future__ import annotations

import pytest
import torch

from keifu.nn.losses import IGNORE
from keifu.nn.part import count
from recipes.associative_recall import LENGTH, TASK, rows, spec

KEYS, VALUES, LAG = TASK.keys, TASK.values, TASK.lag


@pytest.mark.slow
def test_hyena_recalls_and_short_filters_do_not() -> None:
    from recipes.associative_recall import accuracy, train

    assert accuracy(train()) > 0.9
    assert accuracy(train(taps=3)) < 0.35


def test_what_is_learnt_was_told_before_the_blanks() -> None:
    batch = rows(5, seed=0)
    for ids, labels in zip(batch.ids.split(LENGTH), batch.labels.split(LENGTH), strict=True):
        told = dict(ids[: 2 * KEYS].view(-1, 2).tolist())
        assert sorted(told) == list(range(KEYS))
        assert ids[2 * KEYS : 2 * KEYS + LAG].unique().tolist() == [KEYS + VALUES]
        asked = (labels != IGNORE).nonzero().flatten().tolist()
        assert len(asked) == KEYS
        assert all(told[int(ids[at - 1])] == int(labels[at]) == int(ids[at]) for at in asked)


def test_the_ablation_changes_the_window_alone() -> None:
    """As many weights; after three taps a hundredth is left, across the blanks nothing."""
    long, short = spec(), spec(taps=3)
    assert count(long) == count(short)
    filters = [s.blocks[0].mixer.build().get_submodule("filter") for s in (long, short)]
    whole, cut = (
        torch.exp(-f.get_buffer("times")[0] * f.get_buffer("rates")[0].abs()) for f in filters
    )
    torch.testing.assert_close(cut[3], torch.full_like(cut[3], 0.01))
    assert cut[LAG].max() < 1e-7
    assert whole[LAG].max() > 0.3
