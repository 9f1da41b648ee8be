"""Schedules against the papers' formulas, worked out by hand, and transformers' functions."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from keifu.core.errors import KeifuError
from keifu.training.schedules import schedules
from keifu.training.schedules.constant import Constant
from keifu.training.schedules.cosine import Cosine
from keifu.training.schedules.inverse_square_root import InverseSquareRoot
from keifu.training.schedules.linear import Linear
from keifu.training.schedules.noam import Noam
from keifu.training.schedules.rewarmed import Rewarmed
from keifu.training.schedules.slanted_triangular import SlantedTriangular
from keifu.training.schedules.wsd import WSD


def test_linear_and_cosine_equal_transformers() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    linear = get_linear_schedule_with_warmup(optimizer, 10, 50).lr_lambdas[0]
    cosine = get_cosine_schedule_with_warmup(optimizer, 10, 50).lr_lambdas[0]
    for step in range(60):
        assert Linear(total=50, warmup=10).factor(step) == pytest.approx(linear(step), abs=1e-12)
        if step <= 50:  # theirs rises again after its end
            expected = pytest.approx(cosine(step), abs=1e-12)
            assert Cosine(total=50, warmup=10).factor(step) == expected
    assert Cosine(total=50, floor=0.1).factor(50) == pytest.approx(0.1)
    assert Cosine(total=50, floor=0.1).factor(500) == pytest.approx(0.1)


def test_constant_inverse_square_root_and_wsd_equal_transformers() -> None:
    made = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    pairs = [
        (Constant(warmup=10), get_constant_schedule_with_warmup(made, 10)),
        (InverseSquareRoot(warmup=10), get_inverse_sqrt_schedule(made, 10)),
        (InverseSquareRoot(warmup=10, timescale=25), get_inverse_sqrt_schedule(made, 10, 25)),
        (InverseSquareRoot(), get_inverse_sqrt_schedule(made, 0)),
    ]
    for form in ("linear", "cosine", "1-sqrt"):
        for warmup, floor in ((10, 0.0), (0, 0.1)):  # theirs warms up from the floor
            ours = WSD(total=60, decay=20, warmup=warmup, form=form.removeprefix("1-"), floor=floor)
            theirs = get_wsd_schedule(made, warmup, 20, 60, decay_type=form, min_lr_ratio=floor)
            pairs.append((ours, theirs))
    for ours, theirs in pairs:
        for step in range(80):
            expected = theirs.lr_lambdas[0](step)
            assert ours.factor(step) == pytest.approx(expected, abs=1e-12), (ours, step)


def test_a_rate_is_warmed_again_from_where_it_ended() -> None:
    """Gupta et al. 2023, section 3: up in a line to the whole rate, a cosine to a tenth of it."""
    again = Rewarmed(total=110, warmup=10)
    by_hand = {0: 0.1, 5: 0.55, 10: 1.0, 60: 0.55, 110: 0.1, 400: 0.1}
    for step, factor in by_hand.items():
        assert again.factor(step) == pytest.approx(factor)
    assert Rewarmed(total=110, warmup=0).factor(0) == 1.0
    with pytest.raises(KeifuError, match="start 2"):
        Rewarmed(total=110, warmup=10, start=2.0)


def test_noam_is_equation_3_of_the_paper() -> None:
    # 512^-0.5 = 0.04419417382; step 1: * 4000^-1.5; step 4000: * 4000^-0.5; step 16000: half that
    rates = {
        1: 1.746928107e-07,
        400: 6.987712430e-05,
        4000: 6.987712430e-04,
        16000: 3.493856215e-04,
    }
    for number, rate in rates.items():
        assert Noam().factor(number - 1) == pytest.approx(rate, rel=1e-9)
    assert max(range(9000), key=Noam(warmup=4000).factor) == 3999


def test_slanted_triangular_is_equation_3_of_the_paper() -> None:
    """T 1000, cut_frac 0.1, ratio 32: cut 100; p = t / 100, then 1 - (t - 100) / 900."""
    found = SlantedTriangular(total=1000)
    by_hand = {
        0: 1 / 32, 1: (1 + 0.01 * 31) / 32, 50: (1 + 0.5 * 31) / 32, 99: (1 + 0.99 * 31) / 32,
        100: 1.0, 101: (1 + (1 - 1 / 900) * 31) / 32, 550: (1 + 0.5 * 31) / 32,
        999: (1 + (1 / 900) * 31) / 32, 1000: 1 / 32,
    }  # fmt: skip
    for step, factor in by_hand.items():
        assert found.factor(step) == pytest.approx(factor, rel=1e-12)
    assert found.factor(5000) == 1 / 32, "the rate never falls below the lowest"
    quarter = SlantedTriangular(total=40, cut_frac=0.25, ratio=4.0)
    assert [quarter.factor(t) for t in (0, 5, 10, 25, 40)] == [0.25, 0.625, 1.0, 0.625, 0.25]
    assert SlantedTriangular(total=30).cut == 3


def test_constant_warms_up() -> None:
    assert [Constant(warmup=4).factor(t) for t in (0, 1, 4, 99)] == [0.0, 0.25, 1.0, 1.0]
    assert Constant().factor(0) == 1.0


def test_steps_that_do_not_fit_are_said() -> None:
    with pytest.raises(KeifuError, match="warm-up of 50 steps does not fit into 50"):
        Linear(total=50, warmup=50)
    with pytest.raises(KeifuError, match="a decay of 45 steps does not fit into 50 of which 10"):
        WSD(total=50, decay=45, warmup=10)
    with pytest.raises(KeifuError, match=r"cosin.*nearest: cosine"):
        WSD(total=50, decay=4, form="cosin")
    with pytest.raises(KeifuError, match="timescale 0"):
        InverseSquareRoot(timescale=0)
    with pytest.raises(KeifuError, match="9 steps are too few"):
        SlantedTriangular(total=9)
    with pytest.raises(KeifuError, match=r"cut_frac 1\.5"):
        SlantedTriangular(total=9, cut_frac=1.5)
    expected = {"constant", "linear", "cosine", "noam", "slanted-triangular"}
    assert expected <= {name for name in schedules if schedules[name]}
