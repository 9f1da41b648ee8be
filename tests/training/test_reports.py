"""Reports: names of Hugging Face, what is there after a resume, one line where a package lacks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from keifu.core.errors import KeifuError
from keifu.training.loop import Record
from keifu.training.report import scalars
from keifu.training.reports import reports
from keifu.training.reports.plot import POINTS, Plot

RECIPE = {"steps": 6, "lr": 0.1}


def record(step: int, loss: float, **more: Any) -> Record:
    return Record(
        step=step, loss=loss, count=9, norm=0.5, lr=0.1, skipped=False, batches=(step, step + 1),
        tokens=10, operations=0.0, metrics={"accuracy": 0.25}, seconds=2.0, **more,
    )  # fmt: skip


HELD = {"held_out": {"loss": 3.5, "accuracy": 0.5}, "samples": ["a text"]}


def test_names_are_hugging_faces() -> None:
    assert scalars(record(4, 2.0, found=HELD)) == {
        "train/loss": 2.0, "train/learning_rate": 0.1, "train/grad_norm": 0.5,
        "train/global_step": 5.0, "train/skipped": 0.0, "train/accuracy": 0.25,
        "train/tokens_per_second": 5.0, "eval/loss": 3.5, "eval/accuracy": 0.5,
    }  # fmt: skip
    assert {"tensorboard", "mlflow", "wandb", "plot"} == set(reports)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("tensorboard", "tensorboard", "tensorboard"), ("mlflow", "mlflow", "mlflow"),
        ("wandb", "wandb", "wandb"), ("plot", "matplotlib.figure", "matplotlib"),
    ],
)  # fmt: skip
def test_a_package_that_is_not_there_is_named(
    name: str, module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in list(sys.modules):
        if loaded.startswith((module, "torch.utils.tensorboard")):
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(KeifuError, match=f"{name} needs {package}: pip install {package}"):
        reports[name]().open(tmp_path, RECIPE)


def test_curves_are_drawn_and_go_on_after_a_resume(tmp_path: Path) -> None:
    first = Plot(every=3).open(tmp_path, RECIPE)
    for step in range(5):
        first(record(step, 5.0 - step, found=HELD if step == 2 else {}))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    first.close()
    again = Plot(every=100).open(tmp_path, RECIPE)
    for step in (3, 4, 5):
        again(record(step, 9.0))
    again(record(6, float("nan")))
    again.close()
    rows = json.loads((tmp_path / "curves.json").read_text())
    assert [rows[str(n)].get("train/loss") for n in range(1, 8)] == [5, 4, 3, 9, 9, 9, None]
    assert rows["3"]["eval/loss"] == 3.5


def test_curves_of_long_runs_are_bounded(tmp_path: Path) -> None:
    curves: Any = Plot(every=10**9).open(tmp_path, RECIPE)
    for step in range(3 * POINTS):
        curves(record(step, 1.0, found=HELD if step == 8 else {}))
    assert POINTS / 2 <= len(curves.rows) <= POINTS
    assert 9 in curves.rows, "held-out losses stay"


def test_tensorboard_has_every_step_once_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps, loss in ((range(4), 1.0), (range(2, 6), 2.0)):
        report = reports["tensorboard"]().open(tmp_path, RECIPE)
        for step in steps:
            report(record(step, loss, found=HELD))
        report.close()
    held = EventAccumulator(str(tmp_path / "runs"))
    held.Reload()
    found = [(event.step, event.value) for event in held.Scalars("train/loss")]
    assert found == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0), (6, 2.0)]
    assert [event.value for event in held.Scalars("eval/loss")] == [3.5] * 6


def test_mlflow_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for steps in (range(2), range(2, 4)):
        report = reports["mlflow"]().open(tmp_path, RECIPE)
        for step in steps:
            report(record(step, float(step), found=HELD))
        report.close()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path.resolve()}/mlflow.db")
    run = (tmp_path / "mlflow.run").read_text()
    found = client.get_metric_history(run, "train/loss")
    assert [(m.step, m.value) for m in found] == [(1, 0), (2, 1), (3, 2), (4, 3)]
    assert client.get_run(run).data.params == {"steps": "6", "lr": "0.1"}


def test_wandb_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    report = reports["wandb"]().open(tmp_path, RECIPE)
    report(record(0, 1.0, found=HELD))
    report.close()
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
