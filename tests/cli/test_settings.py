"""Settings: flags over variables over the file over the defaults; nothing is dropped silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keifu.cli.main import main

Opened = list[dict[str, Any]]


@pytest.fixture
def config(home: Path) -> Path:
    path = home / "config" / "keifu" / "config.yaml"
    path.parent.mkdir(parents=True)
    return path


def test_precedence(config: Path, scripted: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("threads: 2\nmodel: of-file\nchat:\n  threads: 3\n  top-k: 7\n")
    assert main(["chat", "hi"]) == 0
    assert (scripted[-1]["name"], scripted[-1]["threads"]) == ("of-file", 3)
    assert scripted[-1]["lm"].requests[-1].sampling.top_k == 7
    monkeypatch.setenv("KEIFU_THREADS", "4")
    monkeypatch.setenv("KEIFU_CHAT_TOP_K", "8")
    assert main(["chat", "hi"]) == 0
    assert scripted[-1]["threads"] == 4
    assert scripted[-1]["lm"].requests[-1].sampling.top_k == 8
    assert main(["chat", "--threads", "5", "--top-k", "9", "hi"]) == 0
    assert scripted[-1]["threads"] == 5
    assert scripted[-1]["lm"].requests[-1].sampling.top_k == 9
    assert main(["complete", "hi"]) == 0
    assert scripted[-1]["threads"] == 4


def test_the_checkpoints_defaults_come_last(scripted: Opened) -> None:
    assert main(["chat", "hi"]) == 0
    assert scripted[-1]["lm"].requests[-1].options == {}


def test_lists_and_switches(config: Path, scripted: Opened, capsys: Any) -> None:
    config.write_text("chat:\n  stop: [x, y]\n  json: true\n")
    assert main(["chat", "hi"]) == 0
    assert scripted[-1]["lm"].requests[-1].sampling.stop == ("x", "y")
    assert capsys.readouterr().out.startswith("{")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("thread: 2", "thread is no setting (nearest: threads)"),
        ("chat:\n  temprature: 1", "chat: temprature is no setting (nearest: temperature)"),
        ("chat: 3", "chat: expected a section of options, got 3"),
        ("threads: many", "threads: 'many' is not a valid integer"),
        ("threads: 2.5", "threads: '2.5' is not a valid integer"),
        ("threads: [1]", "threads: expected one value"),
        ("chat:\n  precision: low", "chat.precision: 'low' is not one of"),
        ("threads: 1\nthreads: 2", "line 2: threads is set twice"),
        ("- a", "expected `option: value` lines, got list"),
        ("a: [", "is not YAML"),
        ("a: &a [*a]", "is no setting"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("x: " + "[" * 5000, "is not YAML"),
        ("#" * (1 << 20) + "\n", "larger than"),
    ],
)
def test_what_nobody_asked_for_is_an_error(
    text: str, said: str, config: Path, scripted: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(text)
    assert main(["chat", "hi"]) == 1
    out = capsys.readouterr()
    assert said in out.err
    assert str(config) in out.err
    assert out.err.count("\n") == 1
    assert scripted == []


def test_other_verbs_sections_are_theirs(config: Path, scripted: Opened) -> None:
    config.write_text("serve:\n  port: 1\n")
    assert main(["chat", "hi"]) == 0


def test_a_named_file_must_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KEIFU_CONFIG", "/nowhere/x.yaml")
    assert main(["chat", "hi"]) == 1
    assert "there is no file /nowhere/x.yaml" in capsys.readouterr().err


def test_a_misspelt_variable_is_told(
    scripted: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KEIFU_THREAD", "2")
    monkeypatch.setenv("KEIFU_CHAT_TOPK", "2")
    monkeypatch.setenv("KEIFU_SERVE_PORT", "2")
    assert main(["chat", "hi"]) == 0
    err = capsys.readouterr().err
    assert "KEIFU_THREAD is no setting (nearest: KEIFU_THREADS); it is ignored" in err
    assert "KEIFU_CHAT_TOPK is no setting (nearest: KEIFU_CHAT_TOP_K)" in err
    assert "SERVE" not in err
