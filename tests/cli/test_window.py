"""`--window` and `--sinks` on the command line: what they answer, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

import keifu
from keifu.cli.main import main
from tests.lm.test_window import FEW, prose, tiny

WINDOW = ["--window", "64", "--sinks", "4", "--threads", "1", "--temperature", "0", "--quiet"]


def test_complete_and_chat_look_a_window_back(
    smollm2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, text = ["--model", str(smollm2), *WINDOW], prose()[:600]
    assert main(["complete", *model, "--max-tokens", "4", text]) == 0
    lm = keifu.load(str(smollm2), window=64, sinks=4, threads=1)
    assert lm.count_tokens(text) > 68
    assert (
        capsys.readouterr().out.strip()
        == lm.complete(text, max_tokens=4, temperature=0).text.strip()
    )
    lm.close()
    assert main(["chat", *model, "--max-tokens", "8", "What is the capital of France?"]) == 0
    assert "Paris" in capsys.readouterr().out


def test_both_reach_the_model(scripted: list[dict[str, object]]) -> None:
    for verb in ("chat", "complete"):
        assert main([verb, "--window", "64", "--sinks", "3", "hi"]) == 0
        assert (scripted[-1]["window"], scripted[-1]["sinks"]) == (64, 3)
        assert main([verb, "hi"]) == 0
        assert (scripted[-1]["window"], scripted[-1]["sinks"]) == (None, None)


@pytest.mark.parametrize("verb", ["chat", "complete"])
@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("llama", "--window 0", "--window 0 is not allowed: from 1 to"),
        ("llama", "--window 8 --sinks -1", "--sinks -1 is not allowed: from 0 to"),
        ("llama", "--window 4 --sinks 8", "sinks=8 with window=4 is not allowed"),
        ("llama", f"--window {FEW}", f"more than the {FEW} positions"),
        ("gpt-2", "--window 8", "learned positions are added to the tokens"),
        ("mamba", "--window 8", "no attention reaches further than the window"),
    ],
)
def test_what_is_not_allowed_is_said_in_a_line(
    verb: str,
    name: str,
    words: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([verb, "--model", str(tiny(tmp_path, name)), *words.split(), "hi"]) != 0
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err.splitlines()[-1]  # the usage comes before what a value alone shows
    assert told.err.count("\n") == (4 if "Usage" in told.err else 1)
