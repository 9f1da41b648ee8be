"""A bar on stderr over long work."""

from __future__ import annotations

from collections.abc import Callable


class Bar:
    """Shown while work goes on, gone when it is done."""

    def __init__(self, shown: bool) -> None:
        self._update: Callable[[int, int], None] | None = None
        self._stop: Callable[[], None] = lambda: None
        if not shown:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        bar.start()
        task = bar.add_task("", total=None)
        self._update = lambda done, total: bar.update(task, completed=done, total=total)
        self._stop = bar.stop

    def update(self, done: int, total: int) -> None:
        """Things done, of all."""
        if self._update:
            self._update(done, total)

    def close(self) -> None:
        """Take the bar away."""
        self._stop()
