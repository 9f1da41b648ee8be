"""`keifu tree`, `list` and `show`: drawings worked out by hand, JSON, ASCII, errors."""

from __future__ import annotations

import json

import pytest

from keifu.catalog import System, systems
from keifu.cli.main import main
from keifu.cli.tree import ASCII, UNICODE, draw, lineage


def row(id: str, year: int, *parents: str, **more: object) -> System:
    facts = {"name": id, "area": "x", "idea": "i", "source": "s", "kind": "local"}
    return System(
        **{**facts, "status": "missing", "id": id, "year": year, "parents": parents, **more}
    )


FAMILY = [
    row("root", 1990),
    row("late", 2003, "root", kind="note"),
    row("early", 2001, "root", status="works"),
    row("grandchild", 2004, "early", "late", status="partial", waits_for="images"),
    row("other", 1995, "elsewhere"),
]


def test_drawing():
    lines = [line.plain for line in draw(FAMILY, UNICODE)]
    assert lines == [
        "○ root 1990",
        "├╴● early 2001",
        "│ └╴◐ grandchild 2004 ← late (waits for images)",
        "└╴○ late 2003 note",
        "○ other 1995 ← elsewhere",
    ]
    assert all(line.plain.isascii() for line in draw(FAMILY, ASCII))


def test_lineage_both_ways():
    assert set(lineage("mistral-7b")) >= {"mistral-7b", "openhermes-2.5", "merge-sauerkraut-hero"}
    assert "llama" not in lineage("mistral-7b")
    assert {"word2vec", "transformer", "gpt-3"} <= set(lineage("gpt-4", back=True))
    assert "bart" not in lineage("gpt-2", back=True)


def test_json_has_every_row_and_the_promised_keys(capsys):
    assert main(["tree", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows] == list(systems())
    promised = "id name area year parents status waits_for kind why code proof try idea source"
    for found in rows:
        assert set(promised.split()) <= set(found)
        assert isinstance(found["parents"], list)
        assert isinstance(found["proof"], list)
        assert isinstance(found["year"], int)


def test_whole_tree_draws_every_system_once(capsys, monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    assert main(["tree"]) == 0
    text = capsys.readouterr().out
    assert text.isascii()
    drawn = [
        word
        for line in text.splitlines()
        for word in line.partition("<-")[0].split()
        if word in systems()
    ]
    assert set(systems()) == set(drawn)


def test_filters_and_errors(capsys):
    assert main(["tree", "--area", "experts", "--json"]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == [
        "moe", "switch-transformers", "switch-c-2048", "peer", "gpt-4-moe-rumour",
    ]  # fmt: skip
    assert main(["tree", "llma"]) == 1
    assert "nearest: llama" in capsys.readouterr().err
    assert main(["tree", "--area", "expert"]) == 1
    assert "nearest: experts" in capsys.readouterr().err
    assert main(["tree", "--ancestors"]) == 2


def test_list_and_show(capsys):
    assert main(["list", "systems", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(systems())
    assert main(["list", "families"]) == 0
    assert "LLaMA" in capsys.readouterr().out
    assert main(["show", "llama", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["system"]["parents"] == ["gpt-3", "palm", "chinchilla"]
    assert "llama-2" in facts["system"]["children"]
    assert facts["families"]["module"] == "llama"
    assert main(["show", "default"]) == 0
    assert "smollm2-135m" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "hint"), [(["list", "sistems"], "systems"), (["show", "brt"], "bert")]
)
def test_a_miss_names_the_nearest(capsys, args, hint):
    assert main(args) == 1
    assert hint in capsys.readouterr().err
