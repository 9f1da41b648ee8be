"""Stock lm_eval scores a local task over HTTP as the model scores it in process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.server.harness import FakeLM, running

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


@pytest.mark.parametrize("batch", [1, 3])
def test_lm_eval_local_completions(
    tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import lm_eval
    from lm_eval.tasks import TaskManager

    data = tmp_path / "mini.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (tmp_path / "mini.yaml").write_text(TASK.format(file=data), encoding="utf-8")
    with running() as house:
        result = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "model": "fake",
                "base_url": f"{house.url}/v1/completions",
                "tokenizer_backend": "auto",
                "max_retries": 1,
            },
            tasks=["mini"],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            batch_size=batch,
            log_samples=True,
            bootstrap_iters=0,
        )
        asked = [seen["prompt"] for seen in house.lm().seen]
    assert all(isinstance(prompt, list) for prompt in asked)  # ids: the tokenizer was found
    lm = FakeLM()
    hits = 0
    for sample in result["samples"]["mini"]:
        row = ROWS[sample["doc_id"]]
        # No begin token is put before ids, so the first byte is what the second is given.
        scores = [lm.score(row["question"], choice) for choice in row["choices"]]
        for got, want in zip(sample["filtered_resps"], scores, strict=True):
            assert float(got[0]) == pytest.approx(want.total, abs=1e-6)
            assert (str(got[1]) == "True") == want.greedy
        totals = [score.total for score in scores]
        hits += totals.index(max(totals)) == row["answer"]
    assert result["results"]["mini"]["acc,none"] == hits / len(ROWS)
