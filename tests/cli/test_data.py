"""`keifu data`: a vocabulary, shards and rows from raw text, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from keifu.cli.data_preview import drawn
from keifu.cli.data_tokenize import tokenizer_of
from keifu.cli.main import main
from keifu.data.example import Example, Listed
from keifu.data.preview import preview, shown
from tests.cli.terminal import Terminal
from tests.data.shard_texts import jsonl, texts, tokenizer

Captured = pytest.CaptureFixture[str]


def said(capsys: Captured, *words: object) -> tuple[int, str, str]:
    """What a verb answers: the exit code, what it prints, what it complains of."""
    code = main(["data", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def told(capsys: Captured, *words: object) -> Any:
    """What a verb answers as JSON."""
    code, out, err = said(capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two sources as shards, made by the verb."""
    tokenizer().save(tmp_path / "tok")
    a, b = jsonl(tmp_path / "a.jsonl", texts(40)), jsonl(tmp_path / "b.jsonl", texts(10, seed=1))
    words = ["data", "tokenize", tmp_path / "out", f"books={a}", b, "-t", tmp_path / "tok", "-q"]
    assert main([*map(str, words), "--held-out", "0.1", "--workers", "1"]) == 0
    return tmp_path / "out"


@pytest.mark.parametrize("kind", ["byte-bpe", "unigram", "wordpiece"])
def test_a_vocabulary_is_learnt_and_used(tmp_path: Path, capsys: Captured, kind: str) -> None:
    """Its folder is what transformers and the next verb read; the counts are true."""
    path = jsonl(tmp_path / "a.jsonl", texts(60))
    facts = told(
        capsys, "train-tokenizer", tmp_path / "tok", path, "--kind", kind, "--size", 300,
        "--special", "<|user|>",
    )  # fmt: skip
    assert facts["documents"] == 60
    assert facts["characters"] == sum(len(text) for text in texts(60))
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path / "tok")
    assert len(theirs) == facts["tokens"] <= 300
    assert len(theirs.encode("<|user|>", add_special_tokens=False)) == 1
    made = told(capsys, "tokenize", tmp_path / "out", path, "-t", tmp_path / "tok", "-j", 1)
    ids = [theirs.encode(text, add_special_tokens=False) for text in texts(60)]
    ends = 2 if kind == "wordpiece" else 1
    expected = {"documents": 60, "tokens": sum(map(len, ids)) + ends * 60}
    assert made["splits"]["train"] == {"a": expected}


def test_tokenize_says_what_it_made(shards: Path, tmp_path: Path, capsys: Captured) -> None:
    """A table of sources and splits; a finished folder, a wrong source are one line."""
    words = (f"books={tmp_path / 'a.jsonl'}", "-t", tmp_path / "tok", "-j", 1)
    code, out, _ = said(capsys, "tokenize", tmp_path / "again", *words)
    assert code == 0
    assert "books" in out
    assert "thousand tokens/s" in out
    code, _, err = said(capsys, "tokenize", shards, *words)
    assert (code, err.count("\n")) == (1, 1)
    assert "is finished" in err
    code, _, err = said(capsys, "tokenize", tmp_path / "x", tmp_path / "none", "-t", "no-model")
    assert (code, err.count("\n")) == (1, 1)


def test_preview_shows_rows_of_a_mixture(shards: Path, capsys: Captured) -> None:
    """Pieces, what is learnt; as JSON the same; weights by name."""
    words = ("preview", shards, "--length", 64, "--weight", "books=1", "-n", 2)
    code, out, _ = said(capsys, *words)
    assert code == 0
    assert out.count("-- row") == 2
    assert "- books - 64 tokens" in out
    assert "<|endoftext|>" in out
    assert main([*map(str, ("data", *words)), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["number"] for row in rows] == [0, 1]
    for row in rows:
        assert sum(row["pieces"]) == len(row["tokens"]) == 64
        assert row["learnt"] == 64 - len(row["pieces"])
    code, _, err = said(capsys, "preview", shards, "--weight", "book=1")
    assert (code, "nearest: books" in err) == (1, True)
    assert said(capsys, "preview", shards, "--weight", "books=x")[0] == 1
    assert said(capsys, "preview", shards.parent)[0] == 1


def test_mixture_reports_tokens_of_each_source(shards: Path, capsys: Captured) -> None:
    """By size, by weight, to the end of what may be seen."""
    sizes = json.loads((shards / "manifest.json").read_text())["shards"]
    tokens = {s["source"]: s["tokens"] for s in sizes if s["split"] == "train"}
    words = ("mixture", shards, "--packing", "fit", "--length", 64)
    plain = told(capsys, *words)
    for row in plain["sources"]:
        assert row["share"] == pytest.approx(tokens[row["name"]] / sum(tokens.values()), abs=0.1)
    assert plain["end"] is None
    given = told(capsys, *words, "--weight", "books=1", "--weight", "b=1", "--examples", 65536)
    assert [row["share"] for row in given["sources"]] == pytest.approx([0.5, 0.5], abs=1e-3)
    ended = told(capsys, *words, "--epochs", "books=1", "--epochs", "b=2")
    assert ended["sources"][0]["epochs"] <= 1.0
    code, out, _ = said(capsys, *words, "--epochs", "books=1", "--epochs", "b=2")
    assert (code, "the sources end after" in out) == (0, True)


def test_preview_is_coloured_on_a_terminal(shards: Path) -> None:
    """Green is learnt; by document each piece has a colour of its own."""
    for by, expected in (("loss", {"green", "brightgreen"}), ("document", {"cyan", "brown"})):
        terminal = Terminal("data", "preview", str(shards), "--length", "40", "-n", "1", "--by", by)
        assert terminal.close() == 0
        cells = [cell for line in terminal.screen.buffer.values() for cell in line.values()]
        assert expected <= {cell.fg for cell in cells}
        assert "row 0" in terminal.text()


def test_preview_tells_prompts_targets_and_odd_bytes() -> None:
    """Prompts are read only, targets are written, nothing printed commands the terminal."""
    tok = tokenizer()
    asked, answer = tok.encode("the river"), tok.encode("é \x1b[2J")
    keep = [False] * len(asked) + [True] * len(answer)
    example = Example(ids=np.array(asked + answer), keep=np.array(keep))
    pair = Example.of(asked, target=answer)
    (one,) = preview(Listed(items=[example]), tok, 1)
    assert [t.learnt for t in one.tokens] == keep
    plain = drawn(one, "loss", colours=False)
    assert "[the river]é" in plain
    assert "<U+001B>" in plain
    (two,) = preview(Listed(items=[pair]), tok, 1)
    assert two.learnt == len(answer)
    assert "-> to be written:" in drawn(two, "loss", colours=False)
    byte = next(i for i in range(len(tok)) if tok.token_bytes(i) == b"\xe6")
    assert shown(byte, tok) == "<E6>"


def test_a_gguf_file_is_a_tokenizer_too(smollm2: Path) -> None:
    """What a known model reads is what its shards hold."""
    found = tokenizer_of(str(smollm2))
    assert found.decode(found.encode("Hello, shards.")) == "Hello, shards."
