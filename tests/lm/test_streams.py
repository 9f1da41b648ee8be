"""Many streams at once: what times of tokens say, and the grid over subjects of known speed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from keifu.cli.bench import drawn_grid
from keifu.cli.bench_plot import draw
from keifu.core.errors import KeifuError
from keifu.lm.streams import GridOptions, grid, speeds

FAKE = Path(__file__).with_name("fake_subject.py")


def fake(step: float, *how: str) -> list[str]:
    return [sys.executable, str(FAKE), "1.0", str(step), *how]


def test_only_the_time_when_all_streams_decode_counts() -> None:
    """By hand: from 2 s (the second's first token) to 5 s (the first's last), 3 + 2 tokens."""
    found = speeds([[1.0, 3.0, 4.0, 5.0], [2.0, 4.5, 4.9, 8.0]], context=10)
    assert found["decode"] == pytest.approx(5 / 3)
    assert found["prefill"] == pytest.approx(20 / 2)
    assert found["first_token"] == pytest.approx(1.5)


def test_streams_that_never_run_together_are_refused() -> None:
    with pytest.raises(KeifuError, match="--new"):
        speeds([[1.0, 2.0], [3.0, 4.0]], context=10)
    with pytest.raises(KeifuError, match="--new"):
        speeds([[1.0], [3.0, 4.0]], context=10)


def test_a_grid_of_known_speeds(tmp_path: Path) -> None:
    subjects = {
        "keifu": fake(0.01),
        "slow": fake(0.03),
        "gone": fake(0, "absent"),
        "broken": fake(0, "fail"),
    }
    options = GridOptions(batches=(1, 3), contexts=(8,), new=5, rounds=2, threads=1)
    found = grid(tmp_path / "m.gguf", subjects, options)
    json.dumps(found)
    cells = {(r["subject"], r["batch"]): r for r in found["rows"]}
    assert set(cells) == {(n, b) for n in ("keifu", "slow") for b in (1, 3)}
    for (name, batch), row in cells.items():
        step = 0.01 if name == "keifu" else 0.03
        assert 0 < row["decode"] <= batch / step
        # A prompt of 8 takes two steps, and they are read one after the other.
        assert 0 < row["prefill"] <= 8 / (2 * step)
        assert len(row["samples"]) == 2
        assert row["memory"] >= 64 << 20
    assert 1.2 < cells["slow", 3]["ratio"]["median"] < 8  # three times, however busy
    assert len(drawn_grid(found).splitlines()) >= 1 + 4 + 2
    # 1000 bytes of weights a step and 10 a token of 8 + 5/2 of each stream, at 2 MB/s; products of
    # 4000 operations a token at 8e6 allow 2000 tokens a second.
    alone, three = found["limits"]
    assert (alone["batch"], alone["context"], three["batch"]) == (1, 8, 3)
    assert alone["decode"] == pytest.approx(2e6 / 1105)
    assert three["decode"] == alone["prefill"] == pytest.approx(2000)
    draw(found, tmp_path / "grid.svg")
    assert "3 streams" in (tmp_path / "grid.svg").read_text()
    assert set(found["absent"]) == {"gone", "broken"}


def test_our_own_failure_is_the_users_to_see(tmp_path: Path) -> None:
    with pytest.raises(KeifuError, match="keifu failed"):
        grid(tmp_path / "x.gguf", {"keifu": fake(0, "fail")}, GridOptions(threads=1))


def test_options_are_checked() -> None:
    with pytest.raises(KeifuError, match="--batches 0 is not allowed"):
        GridOptions(batches=(0,))
