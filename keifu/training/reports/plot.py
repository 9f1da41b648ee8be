"""Curves of loss, held-out loss, learning rate and gradient, as one picture in the run's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keifu.core.atomic import written
from keifu.training.report import Open, Report, missing, scalars

if TYPE_CHECKING:
    from keifu.training.loop import Record

PANELS = ("train/loss", "train/learning_rate", "train/grad_norm")

POINTS = 4096
"""Steps that are drawn at most; of more, every other is left out."""


@dataclass(frozen=True, kw_only=True)
class Plot(Report):
    """curves.png, drawn again every so many steps and at the end."""

    every: int = 200
    """Steps"""

    def open(self, folder: Path, recipe: Mapping[str, Any]) -> Open:
        """As the base says; what curves.json holds of an earlier session is drawn, too."""
        try:
            import matplotlib.figure  # noqa: F401
        except ModuleNotFoundError:
            raise missing("plot", "matplotlib") from None
        curves = Curves(folder / "curves.png", self.every)
        kept = folder / "curves.json"
        if kept.exists():
            held = json.loads(kept.read_text("utf-8"))
            curves.rows = {int(step): row for step, row in held.items()}
        return curves


@dataclass
class Curves:
    """The curves of a run, by steps done."""

    path: Path
    every: int
    rows: dict[int, dict[str, float]] = field(default_factory=dict)

    def __call__(self, record: Record) -> None:
        """Take a step; those after it, of an earlier session, are gone."""
        done = record.step + 1
        if max(self.rows, default=0) > done:
            self.rows = {step: row for step, row in self.rows.items() if step < done}
        self.rows[done] = scalars(record)
        if len(self.rows) > POINTS:
            kept = {step for i, step in enumerate(sorted(self.rows)) if i % 2}
            self.rows = {s: r for s, r in self.rows.items() if s in kept or "eval/loss" in r}
        if done % self.every == 0:
            self.close()

    def close(self) -> None:
        """Draw them, whole or not at all, and keep the numbers beside them."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 8), layout="constrained")
        panels = figure.subplots(len(PANELS), 1, sharex=True)
        for panel, name in zip(panels, PANELS, strict=True):
            self._line(panel, name)
            panel.set_ylabel(name.removeprefix("train/").replace("_", " "))
            panel.grid(alpha=0.3)
        self._line(panels[0], "eval/loss", marker="o")
        panels[0].legend()
        panels[-1].set_xlabel("step")
        with written(self.path) as file:
            figure.savefig(file, format="png", dpi=120)
        kept = json.dumps({step: _plain(row) for step, row in self.rows.items()})
        with written(self.path.with_suffix(".json")) as file:
            file.write(kept.encode())

    def _line(self, panel: Any, name: str, **style: Any) -> None:
        points = [(step, row[name]) for step, row in sorted(self.rows.items()) if name in row]
        if points:
            panel.plot(*zip(*points, strict=True), label=name, **style)


def _plain(row: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if math.isfinite(value)}


report = Plot
