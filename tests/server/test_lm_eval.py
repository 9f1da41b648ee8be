"""Stock lm_eval scores a local task over HTTP as the model scores it in process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import keifu.lm
from keifu.lm.base import LM
from tests.server.harness import FakeLM, Running, running

ROWS = [
    {"question": "The sky is", "choices": [" blue", " green", " made of cheese"], "answer": 0},
    {"question": "Two and two make", "choices": [" five", " four"], "answer": 1},
    {"question": "Kyoto is in", "choices": [" Japan", " 日本", " Norway"], "answer": 0},
    {"question": "Water is", "choices": [" wet", " dry", " a metal", " loud"], "answer": 0},
]
TASK = """
task: mini
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


def same_scores(house: Running, lm: LM, folder: Path, batch: int) -> None:
    """Run lm_eval on the task against the server, and compare each score with the model's own."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    data = folder / "mini.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (folder / "mini.yaml").write_text(TASK.format(file=data), encoding="utf-8")
    result = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "fake",
            "base_url": f"{house.url}/v1/completions",
            "tokenizer_backend": "auto",
            "max_retries": 1,
        },
        tasks=["mini"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        batch_size=batch,
        log_samples=True,
        bootstrap_iters=0,
    )
    hits = 0
    for sample in result["samples"]["mini"]:
        row = ROWS[sample["doc_id"]]
        scores = [lm.score(row["question"], choice) for choice in row["choices"]]
        for got, want in zip(sample["filtered_resps"], scores, strict=True):
            assert float(got[0]) == pytest.approx(want.total, abs=1e-6)
            assert (str(got[1]) == "True") == want.greedy
        totals = [score.total for score in scores]
        hits += totals.index(max(totals)) == row["answer"]
    assert result["results"]["mini"]["acc,none"] == hits / len(ROWS)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_small_model(offline: None, tmp_path: Path, batch: int) -> None:
    with running() as house:
        same_scores(house, FakeLM(), tmp_path, batch)
        asked = [seen["prompt"] for seen in house.lm().seen]
    assert all(isinstance(prompt, list) for prompt in asked)  # ids: the tokenizer was found


def test_the_default_model(offline: None, tmp_path: Path, smollm2: Path) -> None:
    lm = keifu.lm.load(str(smollm2), ctx=256, threads=2)
    try:
        with running(lambda source: lm) as house:
            same_scores(house, lm, tmp_path, 1)
    finally:
        lm.close()
