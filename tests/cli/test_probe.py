"""`keifu probe`: help from the probes themselves, one line for each misuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import keifu.lm
from keifu.cli import model
from keifu.cli.main import main
from tests.evaluation.planted import planted

NEEDLE = ["probe", "needle", "--no-score", "--depths", "0,100", "--lengths"]


@pytest.fixture(autouse=True)
def scripted_needle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keifu.lm, "load", lambda name, **options: planted(context=512))
    monkeypatch.setattr(model, "find", lambda options, quiet=False: None)


def said(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(args)
    out, err = capsys.readouterr()
    return code, out, err


def test_a_table_always(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said([*NEEDLE, "96,128"], capsys)
    assert (code, err) == (0, "")
    assert "smollm2-135m: found" in out
    assert "\033" not in out


def test_json_and_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    code, text, _ = said([*NEEDLE, "96", "--json", "--out", str(out)], capsys)
    assert code == 0
    record: dict[str, Any] = json.loads(text)
    assert [(row["depth"], row["found"]) for row in record["rows"]] == [(0.0, 0.0), (100.0, 1.0)]
    assert record["settings"]["models"] == ["smollm2-135m"]
    assert len((out / "smollm2-135m.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["probe", "needel"], 2, "no verb 'needel'. Did you mean needle?"),
        ([*NEEDLE, "96", "--depths", "120"], 2, "--depths 120 is not allowed: from 0 to 100"),
        ([*NEEDLE, "96", "--depths", "nan"], 2, "--depths nan is not allowed"),
        ([*NEEDLE, "96,many"], 2, "'many' is not a valid integer"),
        ([*NEEDLE, "1024"], 1, "is more than the 512 tokens that smollm2-135m holds"),
        ([*NEEDLE, "20"], 1, "20 tokens do not hold the question and the needle"),
        ([*NEEDLE, "96", "--plot", "x.gif"], 1, "the name must end in .png, .svg, .pdf"),
        ([*NEEDLE, "96", "--hay", "/gone.txt"], 1, "cannot read /gone.txt: No such file"),
        ([*NEEDLE, "96", "--out", "/dev/null"], 1, "--out /dev/null is a file: give a folder"),
        (["probe", "recall", "--pairs", "0"], 2, "--pairs 0 is not allowed"),
    ],
)
def test_misuse_is_one_line(
    args: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, out, err = said(args, capsys)
    assert ended == code
    assert message in err.splitlines()[-1]
    assert not out


@pytest.mark.parametrize("name", ["needle", "recall", "copying", "cost"])
def test_help_has_the_options_and_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(["probe", name, "--help"], capsys)
    assert code == 0
    assert f"keifu probe {name}" in out[out.index("Examples:") :]
    assert all(flag in out for flag in ("--out", "--plot", "--json", "[MODEL...]"))
