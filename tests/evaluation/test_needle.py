"""The needle probe: what is planted is found, counts are exact, an interrupted run goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import keifu
from keifu.core.errors import KeifuError
from keifu.evaluation.findings import Findings
from keifu.evaluation.hay import fitted, hay, hidden
from keifu.evaluation.probe import Subject, examine
from keifu.evaluation.probes.needle import Needle
from keifu.inference.request import Score
from keifu.lm.base import Prompt
from tests.evaluation.planted import PROBE, Planted, answer, asked, planted

ROOT = Path(__file__).parents[2]


def found(findings: Findings) -> dict[tuple[object, object], object]:
    return {(row["length"], row["depth"]): row["found"] for row in findings.rows}


def test_a_planted_blindness_is_seen() -> None:
    lm = planted()
    findings = asked(lm)
    expected = {(n, d): float(d > 50) for n in (96, 192) for d in (0, 25, 75, 100)}
    assert found(findings) == expected
    # The whole prompt has exactly the tokens asked for, as the model itself counts them.
    assert [lm.count_tokens(prompt) for prompt in lm.prompts] == [96] * 4 + [192] * 4
    assert [row["tokens"] for row in findings.rows] == [96] * 4 + [192] * 4
    json.dumps(findings.record(), allow_nan=False)


def test_answers_are_weighed_wherever_they_stand() -> None:
    findings = asked(planted(), probe=dataclasses.replace(PROBE, score=True, samples=2))
    assert {row["preferred"] for row in findings.rows} == {1.0}
    assert {row["margin"] for row in findings.rows} == {1.5}
    assert {row["samples"] for row in findings.rows} == {2}
    assert found(findings)[192, 0] == 0.0


def test_a_model_that_cannot_score_says_so_once() -> None:
    class Mute(Planted):
        async def ascore(self, prompt: Prompt, continuation: Prompt) -> Score:
            raise KeifuError("it shows no probabilities")

    findings = asked(Mute.from_function(answer), probe=dataclasses.replace(PROBE, score=True))
    assert findings.notes == ("answers are not weighed: it shows no probabilities",)
    assert {row["preferred"] for row in findings.rows} == {None}
    assert found(findings)[192, 75] == 1.0


def test_a_broken_model_is_an_error() -> None:
    lm = planted()
    lm.margin = float("nan")
    with pytest.raises(KeifuError, match="log-probability is nan"):
        asked(lm, probe=dataclasses.replace(PROBE, score=True))


def test_a_needle_of_ones_own_in_a_text_of_ones_own(tmp_path: Path) -> None:
    text = tmp_path / "hay.txt"
    text.write_text("Grass is green, and so it goes on. " * 60)
    options = {"needle": "Ada keeps a blue owl.", "question": "What owl?", "answer": "blue"}
    probe = Needle(lengths=(64,), depths=(50.0,), hay=text, score=False, **options)
    lm = Planted.from_function(lambda request: "Blue!" if "green" in request.prompt else "")
    assert [row["found"] for row in asked(lm, probe=probe).rows] == [0.0]  # not "blue"
    lm = Planted.from_function(lambda request: "  blue.")
    (row,) = asked(lm, probe=probe).rows
    assert (row["found"], row["exact"]) == (1.0, 1.0)
    assert lm.prompts[0].count("Ada keeps a blue owl.") == 1
    with pytest.raises(KeifuError, match="the hay holds the answer 'green' itself"):
        asked(lm, probe=dataclasses.replace(probe, answer="green"))
    with pytest.raises(KeifuError, match="give a longer --hay"):
        asked(lm, probe=dataclasses.replace(probe, lengths=(3000,)))


@pytest.mark.parametrize("depth", [0, 10, 50, 90, 100])
def test_depth_is_a_share_of_the_hay(depth: float) -> None:
    text = hidden(hay(None), 20_000, depth, "NEEDLE")
    assert text.index("NEEDLE") == pytest.approx(200 * depth, abs=400)
    assert text.count("NEEDLE") == 1


def test_where_no_text_has_the_count_the_longest_below_is_taken() -> None:
    """Every character counts as three tokens."""
    text = fitted(lambda size: "x" * size, lambda t: 3 * len(t), 100, 10_000)
    assert len(text) == 33
    with pytest.raises(KeifuError, match="do not hold the question"):
        fitted(lambda size: "y" * (size + 50), len, 40, 1000)


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.evaluation.planted", str(tmp_path)], cwd=ROOT
    )
    ledger, until = tmp_path / "planted.jsonl", time.monotonic() + 60
    while not (ledger.exists() and ledger.read_text().count("\n") >= 4):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with ledger.open("a") as file:
        file.write('{"cell": {"length": 96, "dep')  # what a kill in the middle of a line leaves
    done = ledger.read_text().count("\n") - 1
    lm = planted()
    findings = asked(lm, tmp_path)
    assert len(lm.prompts) == 8 - done < 8
    assert findings == asked(planted())
    lm = planted()
    assert asked(lm, tmp_path) == findings
    assert not lm.prompts
    # More depths are more cells, not another run; another seed is another run.
    wider = dataclasses.replace(PROBE, depths=(0, 25, 50, 75, 100))
    asked(lm, tmp_path, wider)
    assert len(lm.prompts) == 2
    with pytest.raises(KeifuError, match=r"is of another run \(other seed\)"):
        asked(lm, tmp_path, dataclasses.replace(PROBE, seed=1))


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    asked(planted(), tmp_path)
    ledger = tmp_path / "planted.jsonl"
    lines = ledger.read_text().splitlines()
    ledger.write_text("\n".join([*lines[:2], "[1]", *lines[3:], ""]))
    with pytest.raises(KeifuError, match="line 3 is no finished cell"):
        asked(planted(), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (120.0,)}, "--depths 120 is not allowed: from 0 to 100"),
        ({"depths": (float("nan"),)}, "--depths nan is not allowed"),
        ({"lengths": (8,)}, "--lengths 8 is not allowed"),
        ({"depths": ()}, "--depths is empty"),
        ({"lengths": (64, 64)}, "--lengths has a value twice"),
        ({"samples": 0}, "--samples 0 is not allowed"),
        ({"needle": "x"}, "go together: give all three"),
        ({"against": ("x",)}, "--against weighs answers to a --needle"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(KeifuError, match=message):
        Needle(**options)  # type: ignore[arg-type]


def test_more_than_the_model_holds_is_refused_before_anything_is_asked() -> None:
    lm = planted(context=128)
    with pytest.raises(
        KeifuError, match="--lengths 192 with 24 tokens of answer is more than the 128"
    ):
        asked(lm)
    assert not lm.requests


def test_the_real_model_finds_a_number(smollm2: Path) -> None:
    """The engine reads exactly as many tokens as the table says."""
    lm = keifu.load(str(smollm2), threads=1)
    read: list[int] = []
    said = lm.chat_stream

    def noted(messages: object, **options: object) -> object:
        stream = said(messages, **options)  # type: ignore[arg-type]
        read.append(lm.count_tokens(messages))  # type: ignore[arg-type]
        return stream

    lm.chat_stream = noted  # type: ignore[method-assign,assignment]
    probe = Needle(lengths=(160,), depths=(50.0,))
    (row,) = examine("needle", probe, [Subject("smollm2", lambda: lm)]).rows
    assert read == [row["tokens"]] == [160]
    assert (row["found"], row["preferred"]) == (1.0, 1.0)
    assert isinstance(row["margin"], float)
    assert row["margin"] > 1
