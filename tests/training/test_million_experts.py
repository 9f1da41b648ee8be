"""PEER learns facts by heart that a dense layer of as many active parameters does not."""

from __future__ import annotations

import pytest

from keifu.nn.mlp import GatedMLP
from keifu.nn.part import count
from recipes import million_experts as recipe


def test_both_layers_use_as_many_parameters_for_a_token() -> None:
    """By hand: 4 queries of 8, 2 * 32 half-keys of 4, 32 neurons in and out, norm's 64."""
    used = recipe.active(recipe.EXPERTS.peer())
    assert used == 32 * 32 + 2 * 32 * 4 + 2 * 32 * 32 + 64 == 3392
    mlp = recipe.dense().spec().blocks[0].mlp
    assert isinstance(mlp, GatedMLP)
    assert used <= count(mlp) < used + 3 * 32
    assert recipe.active(recipe.FEW.peer()) < 1.1 * used


@pytest.mark.slow
def test_peer_knows_every_fact_and_a_dense_layer_does_not() -> None:
    assert recipe.knows(recipe.EXPERTS) > 0.99
    assert recipe.knows(recipe.dense()) < 0.85
    assert recipe.knows(recipe.FEW) < 0.85
