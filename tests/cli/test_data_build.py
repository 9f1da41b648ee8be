"""`keifu data inspect` and `build`: verdicts, places, reports, JSON, exit codes; no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from keifu.cli.main import main
from tests.data import corpus

Capture = pytest.CaptureFixture[str]


def run(*words: object) -> int:
    return main(["data", *map(str, words)])


def test_inspect(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]}\n'
        '{"instruction": "x", "output": "y"}\nnope\n'
    )
    assert run("inspect", path) == 1
    told = capsys.readouterr().out
    assert f"mixed forms: 2 messages (first {path}:1), 1 alpaca (first {path}:3)" in told
    assert f"{path}:2: turn 2: the assistant's turn is empty" in told
    assert f"{path}:4: bad JSON" in told
    assert run("inspect", path, "--rows", 1, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["sources"]
    assert (found["verdict"], found["rows"], found["whole"]) == ("messages", 1, False)


def test_inspect_a_dataset_info(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.json").write_text('[{"q": "one", "a": "two"}]')
    (tmp_path / "b.jsonl").write_text('{"text": "x"}')
    entries = {
        "asked": {"file_name": "a.json", "columns": {"prompt": "q", "response": "a"}},
        "plain": {"file_name": "b.jsonl"},
    }
    info = tmp_path / "dataset_info.json"
    info.write_text(json.dumps(entries))
    assert run("inspect", info, "--json") == 0
    found = json.loads(capsys.readouterr().out)["sources"]
    assert [(f["source"], f["verdict"]) for f in found] == [
        (f"{info}:asked", "alpaca"), (f"{info}:plain", "text"),
    ]  # fmt: skip


def test_inspect_empty_and_one(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("")
    assert run("inspect", path) == 1
    assert "no rows" in capsys.readouterr().out
    path.write_text('{"text": "one"}')
    assert run("inspect", path) == 0
    assert "text (text to learn as it is)\n1 rows, 3 characters" in capsys.readouterr().out


def test_build(tmp_path: Path, capsys: Capture) -> None:
    source = corpus.write(tmp_path / "web.jsonl", corpus.planted())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"sources: [{source}]\nsteps: [exact, minhash: {{threshold: 0.7}}]\n")
    out = tmp_path / "out"
    assert run("build", out, "--recipe", recipe, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["read"] == len(corpus.planted())
    reasons = {(row["step"], row["reason"]): row["documents"] for row in told["dropped"]}
    assert reasons["1 exact", "duplicate"] == 10
    assert len((out / "documents.jsonl").read_text().splitlines()) == told["kept"]
    assert run("build", out, source) == 1
    assert f"{out} is built" in capsys.readouterr().err
    assert run("build", out, source, "--restart", "-q") == 0
    evaluation = tmp_path / "q.jsonl"
    evaluation.write_text(json.dumps({"question": corpus.EVALUATION}))
    assert run("build", tmp_path / "b", source, "--against", evaluation) == 0
    shown = capsys.readouterr().out
    assert "contaminated" in shown
    assert "documents/s" in shown


def test_build_skips_bad_rows_only_if_told(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "' + "word " * 60 + '"}\n{"txt": 1}\n')
    recipe = tmp_path / "r.yaml"
    recipe.write_text("steps: [normalise]")
    assert run("build", tmp_path / "out", path, "--recipe", recipe) == 1
    assert f"{path}:2: no column 'text': it has txt" in capsys.readouterr().err
    assert run("build", tmp_path / "out", path, "--recipe", recipe, "--skip-bad",
               "--restart") == 0  # fmt: skip
    told = capsys.readouterr().out
    assert "1 rows could not be read, the first:" in told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [a, ", "is no YAML"),
        ("- exact", "a recipe has steps"),
        ("steps: [exakt]", "nearest: exact"),
        ("steps: [exact]\nsources: web", "sources is a list"),
        ("steps: [exact]\nreading: {unit: page}", "unit: 'page' is not file or line or paragraph"),
    ],
)
def test_bad_recipes(tmp_path: Path, capsys: Capture, text: str, said: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    assert run("build", tmp_path / "out", "x", "--recipe", recipe) == 1
    assert said in capsys.readouterr().err


def test_data_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}')
    code = (
        "import sys\nfrom keifu.cli.main import main\n"
        f"assert main(['data', 'inspect', {str(tmp_path / 'a.jsonl')!r}]) == 0\n"
        f"assert main(['data', 'build', {str(tmp_path / 'o')!r}, "
        f"{str(tmp_path / 'a.jsonl')!r}, '-q']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
