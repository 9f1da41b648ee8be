"""The report: where a run's numbers go besides its folder, under the names that others use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from keifu.core.errors import KeifuError

if TYPE_CHECKING:
    from keifu.training.loop import Record


class Open(Protocol):
    """A report of a run that goes on: called with each step's record."""

    def __call__(self, record: Record) -> None:
        """Take what a step did."""

    def close(self) -> None:
        """Have all of it where it belongs."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Base of the reports: a frozen dataclass of options."""

    def open(self, folder: Path, recipe: Mapping[str, Any]) -> Open:
        """Begin, or go on with, the report of the run in `folder`.

        Raises:
            KeifuError: what it needs is not installed.
        """
        raise NotImplementedError


def scalars(record: Record) -> dict[str, float]:
    """A record under the names of Hugging Face's trainer; a step counts as done: from 1."""
    found = {
        "train/loss": record.loss,
        "train/learning_rate": record.lr,
        "train/grad_norm": record.norm,
        "train/global_step": float(record.step + 1),
        "train/skipped": float(record.skipped),
    }
    found |= {f"train/{name}": value for name, value in record.metrics.items()}
    if record.tokens and record.seconds:
        found["train/tokens_per_second"] = record.tokens / record.seconds
    held_out = record.found.get("held_out", {})
    return found | {f"eval/{name}": float(value) for name, value in held_out.items()}


def texts(record: Record) -> list[str]:
    """Samples that were taken after the step."""
    return list(record.found.get("samples", ()))


def missing(name: str, package: str) -> KeifuError:
    """What to do about a package that is not there."""
    return KeifuError(
        f"the report {name} needs {package}: pip install {package}, or leave {name} out of reports"
    )
