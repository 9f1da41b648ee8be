"""TensorBoard: event files in the run's folder (`tensorboard --logdir RUN`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keifu.training.report import Open, Report, missing, scalars, texts

if TYPE_CHECKING:
    from keifu.training.loop import Record


@dataclass(frozen=True, kw_only=True)
class TensorBoard(Report):
    """Writes under runs/; steps that run again after a resume replace those that were there."""

    def open(self, folder: Path, recipe: Mapping[str, Any]) -> Open:
        """As the base says."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            raise missing("tensorboard", "tensorboard") from None
        return _Writing(SummaryWriter, folder / "runs", recipe)


class _Writing:
    def __init__(self, make: Any, folder: Path, recipe: Mapping[str, Any]) -> None:
        self._make, self._folder, self._recipe = make, folder, recipe
        self._writer: Any = None

    def __call__(self, record: Record) -> None:
        if self._writer is None:  # what is purged depends on the first step of this session
            self._writer = self._make(str(self._folder), purge_step=record.step + 1)
            self._writer.add_text("recipe", f"```\n{json.dumps(self._recipe, indent=1)}\n```")
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record.step + 1)
        for i, text in enumerate(texts(record)):
            self._writer.add_text(f"sample/{i}", text, record.step + 1)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


report = TensorBoard
