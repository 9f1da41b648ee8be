"""`keifu bench serve`: one table for people, one object for programs; the verb beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from keifu.cli.bench_serve import drawn, notes
from keifu.cli.main import main
from keifu.core.errors import KeifuError
from keifu.lm.serving import Serving, command
from tests.server.harness import FakeLM, running

QUICK = ["--rate", "30", "--requests", "3", "--input", "4", "--output", "3"]


def said(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(args)
    out, err = capsys.readouterr()
    return code, out, err


def test_table_json_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "load.png"
    with running(lambda s: FakeLM(s), parallel=4) as house:
        there = ["bench", "serve", "--url", f"{house.url}/v1", *QUICK]
        code, out, err = said([*there, "--slo", "ttft:60000", "--plot", str(picture)], capsys)
        assert (code, err) == (0, "")
        assert "fake: 4 input tokens, 3 output tokens (token ids of the text)" in out
        assert "time per output token after the first" in out
        assert "good/s" in out
        code, out, err = said([*there, "fake", "--json"], capsys)
        assert (code, err) == (0, "")
        code, _, err = said([*there, "fakir"], capsys)
    assert (code, "fake" in err) == (1, True)
    (row,) = json.loads(out)["rows"]
    assert (row["rate"], row["completed"], row["output_tokens"]) == (30, 3, 9)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_a_reader_must_know() -> None:
    late = {"mean": 1.0, "p50": 1.0, "p90": 1.0, "p99": 1.5}
    row = {
        "rate": 4.0, "completed": 1, "failed": 2, "errors": {"HTTP 500": 2}, "late": late,
        "ttft": late, "tpot": None, "itl": None, "e2e": late, "client_cpu": 0.9, "achieved": 0.1,
        "output_rate": 1.0, "total_rate": 2.0, "at_once": 3, "goodput": None,
    }  # fmt: skip
    assert notes(row) == [
        "at 4 requests/s, 2 failed: HTTP 500",
        "at 4 requests/s, requests left up to 1500 ms late (p99): --concurrency held them back, "
        "or this client is too slow",
        "at 4 requests/s, this client took 90% of a core",
    ]
    settings = {"input": ["8"], "output": ["9"], "shared": 0.5, "concurrency": 2, "prompts": "x"}
    text = drawn({"model": "m", "settings": settings, "rows": [row]})
    assert "50% of each prompt shared, at most 2 at once" in text
    assert "1000.0 ms" in text


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["bench", "serve", "--rate", "0"], 2, "--rate 0.0 is not allowed"),
        (["bench", "serve", "--rate", "fast"], 2, "'fast' is not a valid float"),
        (["bench", "serve", "--plot", "x.gif"], 1, "the name must end in .png, .svg, .pdf"),
        (["bench", "serve", "--url", "http://127.0.0.1:9/v1"], 1, "cannot reach 127.0.0.1:9"),
        (["bench", "serve", "--url", "http://x/v1", "--flags", "--ctx 5"], 1, "leave out --url"),
        (["bench", "serve", "--flags", "'"], 1, "cannot be split into words"),
        (["bench", "serve", "no-such-model"], 1, "no-such-model"),
        # The verb that is meant where none is named.
        (["bench", "--new", "1"], 2, "--new 1 is not allowed"),
        (["bench", "speed", "--new", "1"], 2, "--new 1 is not allowed"),
        (["bench", "--peers", "nobody"], 1, "nobody"),
    ],
)
def test_misuse_is_one_line(
    args: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _, err = said(args, capsys)
    assert (found, message in err) == (code, True), err


def test_settings_of_the_plain_verb_stay_those_of_bench(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KEIFU_BENCH_NEW", "1")
    assert "--new 1 is not allowed" in said(["bench"], capsys)[2]
    monkeypatch.delenv("KEIFU_BENCH_NEW")
    config = home / "config" / "keifu" / "config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("bench:\n  rounds: 2000\n")
    assert "--rounds 2000 is not allowed" in said(["bench"], capsys)[2]
    assert "--rounds 2000 is not allowed" in said(["bench", "speed"], capsys)[2]


def test_help_names_both(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(["bench", "--help"], capsys)
    assert code == 0
    assert "speed  A model, beside its peers." in out
    assert "serve  A server under load." in out


def test_a_server_is_started_and_stopped() -> None:
    with Serving([sys.executable, "-m", "tests.server.process", "0.1", "1"]) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert server.process.poll() is None
    assert server.process.returncode == 0


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(KeifuError, match=r"the server ended.*no model .no-such-model"):
        Serving(command("no-such-model", ["--offline"]))
    silent = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(KeifuError, match="ended before it listened: it said nothing"):
        Serving(silent, patience=0.3)
