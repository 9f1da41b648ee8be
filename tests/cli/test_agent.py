"""`keifu agent`: what happens is told, a person may pick, a stopped run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keifu.cli.main import main
from tests.cli.terminal import Terminal

Opened = list[dict[str, Any]]
Capture = pytest.CaptureFixture[str]
BASE = ["agent", "recurrentgpt", "--embedder", "none", "--sentences", "2"]


def test_told_as_json_and_gone_on_with(scripted: Opened, capsys: Capture, tmp_path: Path) -> None:
    args = [*BASE, "-o", str(tmp_path / "s"), "--json"]
    assert main([*args, "--steps", "1", "a", "ferry"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["event"] for e in events] == ["began", "said", "made", "ended"]
    assert events[0]["goal"] == "a ferry"
    assert main([*args, "--steps", "2"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["event"] for e in events] == [
        "began", "said", "chose", "recalled", "said", "made", "ended",
    ]  # fmt: skip
    assert (events[0]["done"], events[-1]["steps"]) == (1, 2)


def test_told_to_a_person(scripted: Opened, capsys: Capture, tmp_path: Path) -> None:
    args = [*BASE, "-o", str(tmp_path / "s"), "--steps", "1", "a ferry"]
    assert main(args) == 0
    out = capsys.readouterr()
    assert out.out.startswith("THE NEXT PARAGRAPH OF THE STORY")
    assert out.err.startswith("1 steps: a ferry\nstep 1, write: ")
    assert main([*args, "-q"]) == 0
    out = capsys.readouterr()
    assert out.out == out.err == ""


def test_misuse(scripted: Opened, capsys: Capture, tmp_path: Path) -> None:
    args = [*BASE, "-o", str(tmp_path / "s")]
    assert main([*args, "--pick", "a ferry"]) == 2
    assert "asks at a terminal" in capsys.readouterr().err
    assert main(args) == 1
    assert "say what it is to be about" in capsys.readouterr().err
    assert main([*args, "--steps", "0", "x"]) == 2
    assert main([*args, "-m", "base", "x"]) == 1
    assert main(["agent", "recurentgpt", "x"]) == 2
    assert "Did you mean recurrentgpt" in capsys.readouterr().err


def test_a_person_picks(tmp_path: Path) -> None:
    folder = str(tmp_path / "s")
    t = Terminal(*BASE, "-o", folder, "--steps", "3", "--pick", "a ferry", columns=100, lines=60)
    try:
        t.wait("1 to 3, or your own words:")
        t.send("9\r")
        t.wait("there is no 9")
        t.send("2\r")
        t.wait("chosen by the person: ANOTHER WAY")
        t.wait(lambda text: text.endswith("own words:"))
        t.send("the engine stops\r")
        t.wait("chosen by the person: the engine stops")
        t.wait("done: 3 steps")
        assert t.close() == 0
    finally:
        t.close(0)


def test_leaving_keeps_what_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    t = Terminal(*BASE, "-o", str(folder), "--pick", "a ferry", columns=100, lines=60)
    try:
        t.wait("1 to 3, or your own words:")
        t.send("\x04")
        t.wait("stopped; the same command goes on with")
        assert t.close() == 130
    finally:
        t.close(0)
    assert json.loads((folder / "state.json").read_text())["step"] == 1
