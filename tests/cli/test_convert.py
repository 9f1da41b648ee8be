"""keifu convert at the command line: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from keifu.cli.main import main
from tests.gguf_builder import tiny_llama


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small GGUF model in q8_0."""
    path = tmp_path / "a.gguf"
    path.write_bytes(tiny_llama())
    return path


def test_json_report(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(source), str(tmp_path / "b"), "--json"]) == 0
    out = capsys.readouterr()
    report = json.loads(out.out)
    assert out.err == ""
    assert report["schema_version"] == 1
    assert report["family"] == "llama"
    assert report["types"] == {"float32": 20}
    assert report["lossless"] is True
    assert report["tokenizer"] is True
    assert report["agreement"]["identical"] is True
    assert report["agreement"]["top1"] == 1.0
    assert (tmp_path / "b" / "model.safetensors").stat().st_size < report["bytes"]


def test_for_a_person(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "b.gguf"
    assert main(["convert", str(source), str(target), "--type", "float16"]) == 0
    out = capsys.readouterr()
    assert "writing" in out.err
    assert f"{target}: llama" in out.out
    assert "top-1 agreement" in out.out
    assert main(["convert", "-q", str(source), str(tmp_path / "c.gguf")]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_result_that_does_not_agree_fails(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "b.gguf"
    assert main(["convert", str(source), str(target), "-t", "q4_0", "--max-kl", "0"]) == 1
    assert "the result does not agree with the source" in capsys.readouterr().err
    assert list(tmp_path.glob("*b.gguf*")) == []


def test_misuse(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(source)]) == 2
    assert main(["convert", str(source), str(source)]) == 1
    assert "is the source itself" in capsys.readouterr().err
    assert main(["convert", str(source), str(tmp_path / "b"), "-t", "q4_zero"]) == 1
    assert "no type 'q4_zero'; nearest: q4_" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "no.gguf"), str(tmp_path / "b")]) == 1
    assert "there is no model at" in capsys.readouterr().err
