"""The golden corpus: what was planted goes, what is clean stays; whoever runs it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keifu.core.errors import ConfigError, KeifuError
from keifu.data.document import Document, Dropped
from keifu.data.pipeline import BuildOptions, Pipeline
from keifu.data.report import Report
from keifu.data.step import STEPS, Step, name_of, steps_of, valued, written
from tests.data import corpus

STEPS_WRITTEN: list[Any] = [
    "normalise",
    {"language": {"keep": ["en"]}},
    "boilerplate",
    "toxic",
    "gopher",
    {"gopher-repetition": {"top": [0.3, 0.3, 0.3], "duplicates": [0.9] * 6}},
    "contamination",
    "exact",
    {"lines": {"after": 2}},
    "minhash",
]


def pipeline(evaluation: Path) -> Pipeline:
    contamination = {"contamination": {"against": [str(evaluation)]}}
    steps = [contamination if step == "contamination" else step for step in STEPS_WRITTEN]
    return Pipeline(steps=steps_of(steps))


def light(evaluation: Path) -> Pipeline:
    """Without the language model, which takes a second to load in each process."""
    steps = [step for step in pipeline(evaluation).steps if name_of(step) != "language"]
    return Pipeline(steps=steps)


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [{"question": corpus.EVALUATION, "answer": "the second"}, {"question": "Why?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return corpus.write(tmp_path / "web.jsonl", corpus.planted())


def kept(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "documents.jsonl").read_text().splitlines()]


def test_the_planted_go_and_the_clean_stay(tmp_path: Path, source: Path, evaluation: Path) -> None:
    report = pipeline(evaluation).build([source], tmp_path / "out")
    rows = kept(tmp_path / "out")
    kinds = Counter(row["meta"]["kind"] for row in rows)
    assert kinds == {"clean": 40, "trimmed": 10, "shared": 10, "toxic line": 5}
    texts = {kind: [r["text"] for r in rows if r["meta"]["kind"] == kind] for kind in kinds}
    assert texts["clean"] == [text for kind, text in corpus.planted() if kind == "clean"]
    assert texts["trimmed"] == [corpus.prose(100 + n) for n in range(10)]
    assert texts["toxic line"] == [corpus.prose(300 + n) for n in range(5)]
    head = f"{corpus.HEAD}\n"
    assert texts["shared"] == [head * (n < 2) + corpus.prose(200 + n) for n in range(10)]
    dropped = {f"{step}: {reason}": times for (step, reason), times in report.dropped.items()}
    assert dropped == {
        "2 language: other language": 1, "4 toxic: toxic": 3, "5 gopher: too few words": 1,
        "6 gopher-repetition: one n-gram too often": 1, "8 exact: duplicate": 10,
        "10 minhash: near duplicate": 10, "7 contamination: contaminated": 4,
    }  # fmt: skip
    assert (report.read, report.kept) == (len(corpus.planted()), 65)
    said = report.examples["7 contamination: contaminated"][0]
    assert said[0].startswith(f"{source}:")
    assert f"{evaluation}:1" in said[1]
    assert "which of the two travellers" in said[1]
    assert json.loads((tmp_path / "out/report.json").read_text()) == json.loads(
        json.dumps(report.as_json())
    )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "documents.jsonl", "report.json", "sample.jsonl",
    ]  # fmt: skip


def test_processes_and_chunks_change_nothing(
    tmp_path: Path, source: Path, evaluation: Path
) -> None:
    one, two, small = (tmp_path / name for name in ("one", "two", "small"))
    light(evaluation).build([source], one)
    light(evaluation).build([source], two, BuildOptions(processes=2, chunk=7))
    light(evaluation).build([source], small, BuildOptions(chunk=1))
    for name in ("documents.jsonl", "report.json", "sample.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
        assert (one / name).read_bytes() == (small / name).read_bytes()


KILLED = """
import os, signal, sys
from keifu.data.pipeline import BuildOptions, Pipeline
from tests.data.test_pipeline import light
from pathlib import Path
left = int(sys.argv[4])
def show(report):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
light(Path(sys.argv[2])).build(
    [sys.argv[1]], sys.argv[3], BuildOptions(chunk=8), show=show
)
"""


def test_a_killed_build_goes_on(tmp_path: Path, source: Path, evaluation: Path) -> None:
    """SIGKILL after five chunks and again after three more, a torn note, then the rest."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    light(evaluation).build([source], whole, BuildOptions(chunk=8))
    for chunks in ("5", "3"):
        words = [sys.executable, "-c", KILLED, source, evaluation, broken, chunks]
        assert subprocess.run(words, timeout=100).returncode == -9
        assert not (broken / "documents.jsonl").exists()
        with open(broken / "documents.jsonl.part", "ab") as part:
            part.write(b"torn")
        with open(broken / "build.journal", "ab") as journal:
            journal.write(b"0123456789abcdef {torn")
    with pytest.raises(ConfigError, match=r"begun with other steps.*--restart"):
        Pipeline(steps=steps_of(["exact"])).build([source], broken, BuildOptions(chunk=8))
    shown: list[int] = []
    light(evaluation).build(
        [source], broken, BuildOptions(chunk=8), show=lambda report: shown.append(report.read)
    )
    assert shown[0] == 72  # eight chunks were there
    for name in ("documents.jsonl", "report.json", "sample.jsonl"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()


def test_one_build_at_a_time(tmp_path: Path, source: Path) -> None:
    simple, seen = Pipeline(steps=steps_of(["exact"])), []

    def show(report: Report) -> None:
        with pytest.raises(KeifuError, match="another build writes in"):
            simple.build([source], tmp_path / "out", BuildOptions(chunk=64))
        seen.append(report.read)

    simple.build([source], tmp_path / "out", BuildOptions(chunk=64), show=show)
    assert len(seen) == 2


def test_a_full_disk_ends_it_and_it_goes_on(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simple, options = Pipeline(steps=steps_of(["exact", "minhash"])), BuildOptions(chunk=16)
    simple.build([source], tmp_path / "whole", options)
    calls, sync = iter(range(99)), os.fsync

    def full(file: int) -> None:
        if next(calls) == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(KeifuError, match=r"No space left.*it goes on"):
            simple.build([source], tmp_path / "out", options)
    simple.build([source], tmp_path / "out", options)
    for name in ("documents.jsonl", "report.json", "sample.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_worker_that_is_killed(tmp_path: Path, source: Path) -> None:
    options = BuildOptions(chunk=16, processes=2)
    with pytest.raises(KeifuError, match=r"ended from outside.*fewer --processes"):
        Pipeline(steps=[corpus.Killing()]).build([source], tmp_path / "out", options)


def test_built_is_built(tmp_path: Path, source: Path) -> None:
    simple = Pipeline(steps=steps_of(["exact"]))
    first = simple.build([source], tmp_path / "out")
    with pytest.raises(KeifuError, match="is built"):
        simple.build([source], tmp_path / "out")
    assert simple.build([source], tmp_path / "out", BuildOptions(restart=True)) == first


def test_samples(tmp_path: Path, source: Path) -> None:
    options = BuildOptions(sample=7)
    Pipeline(steps=steps_of(["exact"])).build([source], tmp_path / "out", options)
    rows = [json.loads(s) for s in (tmp_path / "out/sample.jsonl").read_text().splitlines()]
    assert [row.get("dropped") for row in rows] == [None] * 7 + ["1 exact"] * 7
    assert len({row["meta"]["place"] for row in rows}) == 14


def surprise() -> Any:
    """A judge by length."""
    return lambda text: float(len(text))


def test_a_model_is_handed_in() -> None:
    steps = steps_of([{"perplexity": {"least": 2, "most": 4}}])
    texts = [Document("a" * n) for n in (1, 3, 5)]
    with pytest.raises(KeifuError, match="--judge"):
        list(Pipeline(steps=steps).clean(texts))
    short, kept_one, long = Pipeline(steps=steps, judge=surprise).clean(texts)
    assert short == Dropped("too likely", "perplexity 1.0")
    assert long == Dropped("too unlikely", "perplexity 5.0")
    assert kept_one == replace(texts[1], meta={"perplexity": 3.0})


def test_steps_are_written_and_read(evaluation: Path) -> None:
    for name in STEPS:
        step: Step = STEPS[name]()
        assert name_of(step) == name
        assert steps_of([written(step)]) == [step]
    for step in pipeline(evaluation).steps:
        assert steps_of([written(step)]) == [step]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "a list of steps"),
        ("exact", "a list of steps"),
        (["exakt"], "no data step 'exakt'; nearest: exact"),
        ([{"exact": {"loos": 1}}], "no option 'loos' \\(nearest: loose"),
        ([{"exact": {"loose": "yes"}}], "loose: 'yes' is not true or false"),
        ([{"minhash": {"words": 2.5, "seed": True}}], "words.*seed: True is not a whole number"),
        ([{"language": {"keep": "en"}}], "keep: 'en' is not a list of text"),
        ([{"normalise": {"form": "NFD"}}], "is not NFC or NFKC"),
        ([{"a": 1, "b": 2}], "write a name, or"),
        ([{"minhash": {"threshold": 2}}], "between 0 and 1"),
        ([{"perplexity": {"judge": "x"}}], "no option 'judge'"),
    ],
)
def test_recipes_that_are_wrong(steps: Any, message: str) -> None:
    with pytest.raises(KeifuError, match=message):
        steps_of(steps)


def test_values_are_typed() -> None:
    assert valued(STEPS["language"], {"keep": ["en"], "least": 1}, "here").least == 1.0


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    simple = Pipeline(steps=steps_of(["exact"]))
    with pytest.raises(KeifuError, match="no rows"):
        simple.build([tmp_path / "a.jsonl"], tmp_path / "out")
    with pytest.raises(KeifuError, match="name something to read"):
        simple.build([], tmp_path / "out")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}')
    assert simple.build([tmp_path / "b.jsonl"], tmp_path / "other").kept == 1
