"""Weights & Biases, offline unless WANDB_MODE says otherwise: files in the run's folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keifu.training.report import Open, Report, missing, scalars, texts

if TYPE_CHECKING:
    from keifu.training.loop import Record


@dataclass(frozen=True, kw_only=True)
class WandB(Report):
    """`wandb sync` sends the files later, to whom the user wants."""

    project: str = "keifu"
    """Project, where WANDB_PROJECT is not set"""

    def open(self, folder: Path, recipe: Mapping[str, Any]) -> Open:
        """As the base says."""
        try:
            import wandb
        except ModuleNotFoundError:
            raise missing("wandb", "wandb") from None
        run = wandb.init(
            dir=str(folder), name=folder.name, config=dict(recipe),
            project=os.environ.get("WANDB_PROJECT", self.project),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(silent=True),
        )  # fmt: skip
        return _Logging(run)


class _Logging:
    def __init__(self, run: Any) -> None:
        self._run = run

    def __call__(self, record: Record) -> None:
        said = {f"sample/{i}": text for i, text in enumerate(texts(record))}
        self._run.log({**scalars(record), **said}, step=record.step + 1)

    def close(self) -> None:
        self._run.finish()


report = WandB
