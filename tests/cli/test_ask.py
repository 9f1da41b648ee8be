"""`keifu ask`: files in, a plan, an answer; what cannot be read is said file by file."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from keifu.cli.main import main

Opened = list[dict[str, Any]]
Capture = pytest.CaptureFixture[str]


def test_whole(scripted: Opened, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("tea is green")
    assert main(["ask", str(tmp_path / "a.txt"), "What is tea?"]) == 0
    out = capsys.readouterr()
    assert out.out.startswith('<DOCUMENT NAME="A.TXT">\nTEA IS GREEN\n</DOCUMENT>')
    assert out.err.startswith("stuff: ")
    assert "(1 request, " in out.err


def test_plan_and_json(scripted: Opened, capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"Line {n} is of tea and of milk." for n in range(60)))
    args = ["ask", str(path), "Which?", "--ctx", "200", "--max-tokens", "20", "--note-tokens", "9"]
    assert main([*args, "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["route"], plan["context"], plan["room"]) == ("map-reduce", 200, 180)
    assert scripted[-1]["lm"].requests == []
    assert main([*args, "--json"]) == 0
    out = capsys.readouterr()
    found = json.loads(out.out)
    assert out.err == ""
    assert len(found["steps"]) >= plan["calls"]
    assert found["usage"]["prompt_tokens"] >= plan["prompt_tokens"]
    assert main([*args, "--plan", "--most-calls", "2"]) == 0
    assert capsys.readouterr().out.startswith("retrieve: ")
    assert main([*args, "--most-calls", "2", "--embedder", "none", "-q"]) == 1
    assert "no passage shares a word" in capsys.readouterr().err
    more = ["--strategy", "retrieve", "--json"]
    assert main(["ask", str(path), "Which is line 7?", "--ctx", "200", *more]) == 0
    assert "Line 7 is" in json.loads(capsys.readouterr().out)["passages"][0]
    assert [opened["name"] for opened in scripted[-2:]] == ["smollm2-135m", "minilm-l6-v2"]


def test_piped_and_unreadable(
    scripted: Opened, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good").write_text("tea")
    (tmp_path / "binary").write_bytes(b"a\0b")
    (tmp_path / "empty").write_text(" \n")
    names = [str(tmp_path / name) for name in ("good", "binary", "empty", "missing")]
    assert main(["ask", *names, "Why?"]) == 0
    err = capsys.readouterr().err
    assert "binary is binary (a NUL byte at 1)" in err
    assert "empty is empty; left out" in err
    assert "missing: there is no such file; left out" in err
    assert main(["ask", *names[1:], "Why?"]) == 1
    assert main(["ask", "Why?"]) == 2
    assert "there is no document" in capsys.readouterr().err
    assert main(["ask"]) == 2
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"piped tea\n")))
    assert main(["ask", "-q", "Why?"]) == 0
    assert capsys.readouterr().out.startswith("<DOCUMENT>\nPIPED TEA")
    assert main(["ask", names[0], "Why?", "-m", "base"]) == 1
    assert "takes no instructions" in capsys.readouterr().err
