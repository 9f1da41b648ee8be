"""The bar on the terminal: loss, tokens a second, share of the matrix peak, time to the end."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from keifu.training.rate import peak

if TYPE_CHECKING:
    from keifu.training.loop import Record

_RECENT = 20
"""Steps that the rate is of."""


@contextmanager
def bar(
    steps: int, device: torch.device, precision: str, world: int
) -> Iterator[Callable[[Record], None]]:
    """Something that shows records, on standard error."""
    best = peak(device, precision) * world
    recent: deque[Record] = deque(maxlen=_RECENT)
    columns = (
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f} {task.fields[rate]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("training", total=steps, loss=math.nan, rate="")

        def show(record: Record) -> None:
            recent.append(record)
            done = record.step + 1 if record.back_to is None else record.back_to
            rate = told(list(recent), best)
            progress.update(task, completed=done, loss=record.loss, rate=rate)

        yield show


def told(records: list[Record], best: float) -> str:
    """The rate of some steps: "5,210 tok/s, 27 % of peak"; only what is known of it."""
    seconds = sum(r.seconds for r in records)
    tokens, operations = sum(r.tokens for r in records), sum(r.operations for r in records)
    if not tokens or not seconds:
        return ""
    share = f", {operations / seconds / best:.0%} of peak" if operations else ""
    return f"{tokens / seconds:,.0f} tok/s{share}"
