"""Sentence vectors against hand calculations of sentence-transformers' formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from keifu.core.errors import KeifuError
from keifu.nn.masks import UNMARKED, Landmarks
from keifu.nn.part import build, count
from keifu.nn.sentence import MODES, Dense, Pool, Sentence, Unit
from keifu.nn.step import fresh_step

ROWS = [[[1.0, -2.0], [3.0, 4.0], [5.0, 1.0]], [[7.0, 8.0]], [[-1.0, 0.0], [0.0, -9.0]]]
X = torch.tensor([token for row in ROWS for token in row])
STEP = fresh_step([3, 1, 2])
ROOT_2, ROOT_3 = math.sqrt(2), math.sqrt(3)
BY_HAND = {
    "cls": [[1, -2], [7, 8], [-1, 0]],
    "lasttoken": [[5, 1], [7, 8], [0, -9]],
    "max": [[5, 4], [7, 8], [0, 0]],
    "mean": [[3, 1], [7, 8], [-0.5, -4.5]],
    "mean_sqrt_len": [[9 / ROOT_3, 3 / ROOT_3], [7, 8], [-1 / ROOT_2, -9 / ROOT_2]],
    "weightedmean": [[(1 + 6 + 15) / 6, (-2 + 8 + 3) / 6], [7, 8], [-1 / 3, -18 / 3]],
}
AFTER_TWO = {  # the first two tokens of each row are an instruction; a row of fewer keeps its last
    "cls": [[5, 1], [7, 8], [0, -9]],
    "lasttoken": [[5, 1], [7, 8], [0, -9]],
    "max": [[5, 1], [7, 8], [0, -9]],
    "mean": [[5, 1], [7, 8], [0, -9]],
    "weightedmean": [[5, 1], [7, 8], [0, -9]],
}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_by_hand(mode: str) -> None:
    found = build(Pool(width=2, modes=(mode,)))(X, STEP)
    torch.testing.assert_close(found, torch.tensor(BY_HAND[mode], dtype=torch.float32))


def test_modes_are_joined_in_their_order() -> None:
    found = build(Pool(width=2, modes=("max", "cls")))(X, STEP)
    assert found.tolist() == [[5, 4, 1, -2], [7, 8, 7, 8], [0, 0, -1, 0]]


@pytest.mark.parametrize("mode", AFTER_TWO)
def test_an_instruction_does_not_count(mode: str) -> None:
    step = replace(STEP, landmarks=(Landmarks(prefix=2),) * 3)
    found = build(Pool(width=2, modes=(mode,), prompt=False))(X, step)
    torch.testing.assert_close(found, torch.tensor(AFTER_TWO[mode], dtype=torch.float32))
    counted = build(Pool(width=2, modes=(mode,)))(X, step)
    torch.testing.assert_close(counted, torch.tensor(BY_HAND[mode], dtype=torch.float32))


def test_weights_of_what_is_left_keep_their_places() -> None:
    step = replace(STEP, landmarks=(Landmarks(prefix=1), UNMARKED, UNMARKED))
    found = build(Pool(width=2, modes=("weightedmean",), prompt=False))(X, step)
    assert found[0].tolist() == pytest.approx([(2 * 3 + 3 * 5) / 5, (2 * 4 + 3 * 1) / 5])


def test_what_comes_after_the_pooling() -> None:
    part = Sentence(
        pool=Pool(width=2),
        after=(Dense(inputs=2, outputs=3, act="tanh", residual=True), Unit()),
    )
    assert part.width == 3
    assert count(part) == 2 * 3 + 3 + 2 * 3
    head = build(part)
    torch.manual_seed(0)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    dense = head.get_submodule("after.0")
    pooled = torch.tensor(BY_HAND["mean"])
    linear, other = dense.get_submodule("linear"), dense.get_submodule("residual")
    wanted = torch.tanh(F.linear(pooled, linear.weight, linear.bias))  # type: ignore[arg-type]
    wanted = wanted + F.linear(pooled, other.weight)  # type: ignore[arg-type]
    found = head(X, STEP)
    torch.testing.assert_close(found, wanted / wanted.norm(dim=-1, keepdim=True))


def test_a_zero_vector_has_no_direction() -> None:
    found = build(Unit())(torch.zeros(1, 4))
    assert found.tolist() == [[0, 0, 0, 0]]


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(KeifuError, match="no pooling 'average'"):
        Pool(width=2, modes=("average",))
