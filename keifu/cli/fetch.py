"""Find a model or fetch it, saying on stderr what comes from where, with a bar on a terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from keifu.checkpoints.store import Plan


def fetch(ref: str, *, offline: bool | None = None, quiet: bool = False) -> Path:
    """The path of a model, pulled first if it is not here yet. Raises KeifuError.

    Before a download stderr names the model, its size and licence, and where it goes; `quiet`
    leaves that out. The bar is drawn only on a terminal. A model that is here costs no import.
    """
    from keifu.checkpoints.store import pull

    bar = _Bar()

    def announce(plan: Plan) -> None:
        if not quiet:
            size = megabytes(plan.download) if plan.download else "of unknown size"
            licence = plan.license or "unknown, see its source"
            print(
                f"Fetching {plan.name} ({size}, licence {licence})\n  from {plan.source}\n"
                f"  to {plan.destination}",
                file=sys.stderr,
            )

    progress = bar.update if sys.stderr.isatty() and not quiet else None
    try:
        return pull(ref, progress=progress, announce=announce, offline=offline)
    finally:
        bar.close()


def megabytes(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


class _Bar:
    """A progress bar on stderr that appears with the first byte."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def update(self, done: int, total: int) -> None:
        """Show bytes done of a total; 0 is an unknown one."""
        if self._progress is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._progress = Progress(
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task("download", total=total or None)
        self._progress.update(self._task, completed=done, total=total or None)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress:
            self._progress.stop()
