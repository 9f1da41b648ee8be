"""What times of requests say: percentiles against numpy, the rest by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from keifu.lm.latency import Record, good, most_at_once, percentile, spread, summary


@pytest.mark.parametrize("size", [1, 2, 3, 10, 99, 1000])
def test_percentiles_are_numpys(size: int) -> None:
    values = np.random.default_rng(size).exponential(size=size)
    found = spread(values.tolist())
    assert found is not None
    assert found["mean"] == pytest.approx(values.mean(), rel=1e-12)
    for q in (50, 90, 99):
        assert found[f"p{q}"] == pytest.approx(np.percentile(values, q), rel=1e-12)
    for q in (0, 12.5, 100):
        theirs = np.percentile(values, q)
        assert percentile(sorted(values.tolist()), q) == pytest.approx(theirs, rel=1e-12)


def test_nothing_has_no_percentiles() -> None:
    assert spread([]) is None
    assert spread([math.nan]) is None


def records() -> list[Record]:
    """Due at 10, 11 and 12; the first waits a second here, the last fails."""
    return [
        Record(
            due=10, sent=11, pieces=[12.0, 13.0, 15.0], end=16, prompt_tokens=5, output_tokens=4
        ),
        Record(due=11, sent=11, pieces=[11.5], end=12, prompt_tokens=7, output_tokens=1),
        Record(due=12, sent=12, end=18, failed="HTTP 500"),
    ]


def test_a_row_by_hand() -> None:
    row = summary(records(), {"ttft": 1.0})
    assert (row["requests"], row["completed"], row["failed"]) == (3, 2, 1)
    assert row["errors"] == {"HTTP 500": 1}
    assert row["seconds"] == 8  # from the first that was due to the last end
    assert row["achieved"] == pytest.approx(2 / 8)
    assert (row["prompt_tokens"], row["output_tokens"]) == (12, 5)
    assert row["output_rate"] == pytest.approx(5 / 8)
    assert row["total_rate"] == pytest.approx(17 / 8)
    assert row["ttft"]["mean"] == pytest.approx((2 + 0.5) / 2)  # from when they were due
    assert row["tpot"] == {
        "mean": 1,
        "p50": 1,
        "p90": 1,
        "p99": 1,
    }  # 3 s for 3 tokens; one has none
    assert row["itl"]["mean"] == pytest.approx((1 + 2) / 2)
    assert row["e2e"]["mean"] == pytest.approx((6 + 1) / 2)
    assert row["late"]["p99"] == pytest.approx(np.percentile([1, 0, 0], 99))
    assert row["goodput"] == pytest.approx(1 / 8)
    assert summary(records())["goodput"] is None


def test_goodput_needs_every_limit() -> None:
    slow, quick, failed = records()
    assert good(slow, {"ttft": 2.0, "tpot": 1.0, "itl": 2.0, "e2e": 6.0})
    for name, most in (("ttft", 1.9), ("tpot", 0.9), ("itl", 1.9), ("e2e", 5.9)):
        assert not good(slow, {"ttft": 2.0, "tpot": 1.0, "itl": 2.0, "e2e": 6.0, name: most})
    assert good(quick, {"tpot": 0.001, "itl": 0.001})  # one token has neither
    assert not good(failed, {"ttft": 1e9})


def test_how_many_were_under_way() -> None:
    assert most_at_once(records()) == 2  # one ends as the third is due
    assert most_at_once([]) == 0


def test_all_failed() -> None:
    row = summary([Record(due=1, sent=1, end=2, failed="gone")], {"ttft": 1.0})
    assert (row["achieved"], row["ttft"], row["goodput"]) == (0.0, None, None)
