"""What licences allow: every one is read, and the free models of 2023 are told from the others."""

from __future__ import annotations

import json

import pytest

from keifu.catalog import systems
from keifu.catalog.licences import USES, use_of
from keifu.cli.main import main
from keifu.core.errors import ConfigError

FREE = {
    "dolly-2.0",
    "fastchat-t5",
    "openassistant",
    "redpajama-incite",
    "openllama",
    "falcon",  # 7B and 40B; 180B has its own licence
}
"""The source's list of models for commercial use, mid-2023."""
BOUND = {
    **dict.fromkeys(("llama", "vicuna", "koala", "baize", "evol-instruct"), "research"),
    **dict.fromkeys(("llama-2", "qwen", "falcon-180b", "yi-34b", "gemma-2"), "custom"),
    **dict.fromkeys(("gpt-3", "gpt-4", "chatgpt", "palm", "claude-100k"), "closed"),
    "leaderboard-finetunes": "unclear",
}


def published(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, dict[str, str]]:
    assert main(["list", "published", "--json", *flags]) == 0
    return {row["id"]: row for row in json.loads(capsys.readouterr().out)}


def test_the_filter_gives_the_commercial_ones(capsys: pytest.CaptureFixture[str]) -> None:
    free = published(capsys, "--license", "commercial")
    assert set(free) & (FREE | set(BOUND)) == FREE
    assert {row["use"] for row in free.values()} == {"commercial"}
    every = published(capsys)
    assert {name: every[name]["use"] for name in BOUND} == BOUND
    parts = [published(capsys, "--license", use) for use in USES]
    assert sum(map(len, parts)) == len(every) == sum(bool(r.model) for r in systems().values())


def test_by_country(capsys: pytest.CaptureFixture[str]) -> None:
    japan = published(capsys, "--country", "Japan")
    assert {"opencalm", "japanese-gpt-neox"} <= set(japan)
    assert {row["country"] for row in japan.values()} == {"Japan"}
    both = published(capsys, "--country", "Japan", "--license", "research")
    assert not [name for name in both if name not in japan]
    assert main(["list", "published", "--country", "Jpan"]) == 1
    assert "nearest: Japan" in capsys.readouterr().err
    assert main(["list", "areas", "--license", "custom"]) == 1
    assert "keifu list published" in capsys.readouterr().err


def test_a_licence_that_nobody_read_is_an_error() -> None:
    with pytest.raises(ConfigError, match="Brand New Licence"):
        use_of("Brand New Licence")
    assert use_of("MIT", "closed") == "closed"


def test_what_is_published_of_a_closed_model_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "bard", "--json"]) == 0
    bard = json.loads(capsys.readouterr().out)
    assert (bard["system"]["kind"], bard["card"]["kind"]) == ("retired", "retired")
    assert bard["card"]["lineage"] == ["lamda", "palm-2"]
    assert main(["show", "gpt-4"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "MMLU, 5-shot: 86.4 (GPT-4 Technical Report, arXiv:2303.08774, table 2)" in told
    assert "around the top 10%" in told
