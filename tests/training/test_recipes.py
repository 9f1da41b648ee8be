"""The recipes do what they say (minutes: `make test-slow`)."""

from __future__ import annotations

import pytest


@pytest.mark.slow
def test_an_lstm_remembers_over_a_lag_of_fifty_and_an_rnn_does_not() -> None:
    from recipes.copy_task import accuracy

    assert accuracy("lstm") > 0.99
    assert accuracy("rnn") < 0.5


@pytest.mark.slow
def test_ulmfit_with_100_labels_beats_the_same_classifier_from_scratch() -> None:
    from recipes.ulmfit import run

    tuned, scratch = run()
    assert tuned > 0.95
    assert scratch < 0.75


@pytest.mark.slow
def test_mamba_learns_selective_copying_and_s4d_does_not() -> None:
    from recipes.selective_copying import accuracy, train

    assert accuracy(train("mamba")) > 0.9
    assert accuracy(train("s4d")) < 0.75


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_scaled_positions_find_needles_beyond_the_base_length() -> None:
    from recipes.needle import LONG, SHORT, accuracy, both

    models = both()
    assert accuracy(models["base"], SHORT) > 0.95
    assert accuracy(models["base"], LONG) < 0.6
    assert accuracy(models["scaled"], SHORT) > 0.95
    assert accuracy(models["scaled"], LONG) > 0.95


@pytest.mark.slow
def test_scaling_the_angles_alone_finds_needles_in_longer_texts() -> None:
    from recipes.longer_context import LONG, SCALINGS, SHORT, built, found, short

    base = short()
    assert found(base, SHORT) > 0.95
    reached = {name: found(built(way, base), LONG) for name, way in SCALINGS.items()}
    assert reached["unscaled"] < 0.5
    assert reached["linear"] > 0.9
    assert reached["YaRN"] > 0.9
