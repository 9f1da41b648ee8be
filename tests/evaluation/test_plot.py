"""Pictures and tables of findings."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from keifu.cli.probe_table import drawn
from keifu.core.errors import KeifuError
from keifu.evaluation.findings import Column, Findings, Lines, Row, written
from keifu.evaluation.plot import draw
from tests.evaluation.planted import asked, planted

LENGTH = Column("length", "count")
COSTS = Findings(
    probe="cost",
    title="What a context costs",
    axes=(Column("model", "name"), LENGTH),
    measures=(Column("state", "bytes"), Column("token", "seconds")),
    rows=tuple(
        {"model": m, "length": n, "state": n * 1000 if m == "grows" else 5000.0, "token": 0.001}
        for m in ("grows", "flat")
        for n in (64, 256, 1024)
    ),
    picture=Lines("length", ("state", "token"), log=True),
)


def test_a_heat_map_shows_what_was_found(tmp_path: Path) -> None:
    """Shallow cells are red and deep ones green, at their places."""
    draw(asked(planted()), tmp_path / "map.png")
    image = imread(tmp_path / "map.png")[..., :3]
    height, width = image.shape[:2]
    assert min(height, width) > 300
    red = (image[..., 0] > 0.6) & (image[..., 1] < 0.1)
    green = (image[..., 1] > 0.35) & (image[..., 0] < 0.1)
    for colour in (red, green):
        assert colour.mean() > 0.05
    rows = np.arange(height)[:, None]
    body = image[:, : int(width * 0.75)]  # beside it is the scale of colours
    middle = [
        np.average(rows * c[:, : body.shape[1]], weights=None) / c[:, : body.shape[1]].mean()
        for c in (red, green)
    ]
    assert middle[0] < middle[1]


def test_lines_are_drawn_for_each_model(tmp_path: Path) -> None:
    draw(COSTS, tmp_path / "cost.svg")
    text = (tmp_path / "cost.svg").read_text()
    assert text.startswith("<?xml")
    draw(COSTS, tmp_path / "cost.png")
    image = imread(tmp_path / "cost.png")[..., :3]
    assert image.std() > 0.03
    blue = (abs(image - np.array([0x1F, 0x77, 0xB4]) / 255) < 0.02).all(-1)
    orange = (abs(image - np.array([0xFF, 0x7F, 0x0E]) / 255) < 0.02).all(-1)
    assert blue.sum() > 200
    assert orange.sum() > 200


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeifuError, match=r"must end in \.png, \.svg, \.pdf"):
        draw(COSTS, tmp_path / "cost.bmp")
    with pytest.raises(KeifuError, match="there is no folder"):
        draw(COSTS, tmp_path / "gone" / "cost.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(KeifuError, match=r"pip install 'keifu\[plot\]'"):
        draw(COSTS, tmp_path / "cost.png")
    assert list(tmp_path.iterdir()) == []


def test_the_table_fits_eighty_columns() -> None:
    text = drawn(COSTS, colours=False, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"grows +1024 +1\.0 MB +1 ms", text)
    assert re.search(r"flat +64 +5\.0 kB +1 ms", text)


def test_a_map_has_colours_only_where_they_are_welcome() -> None:
    findings = asked(planted())
    plain = drawn(findings, colours=False, width=80)
    assert re.search(r"depth +96 +192\n +0% +0\.00 +0\.00\n", plain)
    assert re.search(r" 75% +1\.00 +1\.00\n", plain)
    coloured = drawn(findings, colours=True, width=80)
    assert re.sub(r"\033\[[0-9;]*m", "", coloured) == plain
    lines = coloured.splitlines()
    assert "\033[30;41m" in next(line for line in lines if "  0%" in line)
    assert "\033[30;42m" in next(line for line in lines if " 75%" in line)


def test_a_wide_map_is_broken_into_blocks() -> None:
    rows: list[Row] = [
        {**row, "length": n} for n in range(1, 21) for row in asked(planted()).rows[:1]
    ]
    wide = Findings(**{**vars(asked(planted())), "rows": tuple(rows)})
    text = drawn(wide, colours=False, width=80)
    assert max(map(len, text.splitlines()[1:])) <= 80
    assert re.search(r"^depth.* 20$", text, re.M)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, "share", ""), (0.5, "share", "0.50"), (25.0, "percent", "25%"),
        (1536.0, "bytes", "1.5 kB"), (0.01234, "seconds", "12.3 ms"), (2.0, "seconds", "2 s"),
        (12345.6, "rate", "12,346"), (4.5, "rate", "4.5"), (2_000_000, "count", "2000000"),
        ("a", "name", "a"),
    ],
)  # fmt: skip
def test_values_as_a_person_reads_them(value: object, kind: str, text: str) -> None:
    assert written(value, kind) == text  # type: ignore[arg-type]
