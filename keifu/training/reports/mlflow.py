"""MLflow: into MLFLOW_TRACKING_URI, or a database in the run's folder where that is not set."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keifu.core.atomic import write_text
from keifu.training.report import Open, Report, missing, scalars

if TYPE_CHECKING:
    from keifu.training.loop import Record


@dataclass(frozen=True, kw_only=True)
class MLflow(Report):
    """One MLflow run a run's folder, whose id is kept there, so that resuming goes on with it."""

    experiment: str = "keifu"
    """Name of the experiment"""

    def open(self, folder: Path, recipe: Mapping[str, Any]) -> Open:
        """As the base says."""
        try:
            import mlflow
        except ModuleNotFoundError:
            raise missing("mlflow", "mlflow") from None
        where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve()}/mlflow.db"
        client = mlflow.MlflowClient(where)
        kept = folder / "mlflow.run"
        if kept.exists():
            return _Logging(client, kept.read_text("utf-8"))
        found = client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else client.create_experiment(self.experiment)
        run = client.create_run(experiment, run_name=folder.name).info.run_id
        write_text(kept, run)
        for name, value in recipe.items():
            client.log_param(run, name, str(value)[:500])
        return _Logging(client, run)


class _Logging:
    def __init__(self, client: Any, run: str) -> None:
        self._client, self._run = client, run

    def __call__(self, record: Record) -> None:
        for name, value in scalars(record).items():
            if math.isfinite(value):
                self._client.log_metric(self._run, name, value, step=record.step + 1)

    def close(self) -> None:
        self._client.set_terminated(self._run)


report = MLflow
