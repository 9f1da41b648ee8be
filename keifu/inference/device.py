"""Decoding on a device: steps of one token a row, compiled, recorded once and replayed.

The modules run themselves, over a grid of rows whose state they read and write by index, so all
that changes from step to step (tokens, positions, pages, slots) is one copy to the device. A step
is recorded for each number of rows and of pages, both rounded up; the rows that are too many are a
request of the plan's own, whose pages are nobody else's. What does not fit (prompts, guesses, parts
whose shapes depend on values) takes the plain path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keifu.inference.record import Recorder, Work, recorder
from keifu.inference.recorded import check
from keifu.inference.runner import Feed, Runner
from keifu.nn.grid import NOWHERE, Table, handles, pages_of
from keifu.nn.pages import PageGroup, PageTable
from keifu.nn.rotary import Rotary
from keifu.nn.stack import StackModule
from keifu.nn.state import RequestState, StatePool
from keifu.nn.step import Step

ROWS = 64
"""Most rows of a recorded step."""
PAGES = 8
"""Pages of the narrowest table; wider ones have a power of two of them."""
RECORDED = 256
"""Most shapes that one block is compiled for; beyond torch's own limit (8) it runs uncompiled."""

Shape = tuple[int, tuple[int, ...], torch.dtype | None]
"""Rows, pages of each group, and what branches compute in."""


@dataclass(frozen=True, eq=False)
class _Grid:
    """One recorded step: where its inputs are written, and what replays it."""

    host: Tensor
    """(numbers,) int64, in memory that the device copies from by itself where there is one."""
    numbers: np.ndarray[Any, np.dtype[np.int64]]
    """The same memory."""
    device: Tensor
    """(numbers,) the copy that the step reads."""
    replay: Work


class DevicePlan(Runner):
    """A runner over recorded steps.

    Args:
        context: most tokens of a request.
        backend: of torch.compile; None: the modules as they are.
        record: what takes steps down; None: the best that the device has.
        rows: most rows of a step.
    """

    free = 32.0
    """Not measured: a device waits for memory, whatever few tokens it reads."""

    def __init__(
        self,
        model: StackModule,
        pool: StatePool,
        context: int,
        *,
        backend: str | None = "inductor",
        record: Recorder | None = None,
        rows: int = ROWS,
    ) -> None:
        turns, self._known = check(model, pool, context)
        self.model, self.pool, self.context, self.rows = model, pool, context, rows
        self._record = record or recorder(pool.device)
        self._turns = {turn: _turned(turn, context, pool.device) for turn in turns}
        self._blocks = [_compiled(block, backend) for block in model.blocks]
        self._tail = _compiled(_Tail(model), backend)
        self._spare = pool.open()
        pool.reserve(self._spare, 1)
        self._grids: dict[Shape, _Grid] = {}

    def takes(self, lengths: Sequence[int], states: Sequence[RequestState]) -> bool:
        """Steps of one token a row."""
        return len(lengths) <= self.rows and all(n == 1 for n in lengths)

    def run(self, feed: Feed, select: Sequence[int]) -> Tensor:
        """Logits (len(select), vocab) of the selected rows, on the processor."""
        logits, chosen = self.step(feed), list(select)
        first = chosen == list(range(len(chosen)))
        return (logits[: len(chosen)] if first else logits[chosen]).cpu()

    def step(self, feed: Feed) -> Tensor:
        """Logits (rows, vocab) of all rows and of those that are too many, on the device.

        They lie where the next step's are going to.
        """
        states = feed.states
        rows = 1 << (len(states) - 1).bit_length()
        longest = max(state.length for state in states)
        shape = (rows, tuple(self._pages(g, longest) for g in self.pool.groups), feed.compute)
        if shape not in self._grids:
            self._grids[shape] = self._recorded(*shape)
        grid = self._grids[shape]
        self._fill(grid, shape, feed.ids, states)
        return grid.replay()

    def _pages(self, group: PageGroup, length: int) -> int:
        """Pages of a row's table for requests of up to `length`."""
        need = pages_of(group, length)
        if group.window is not None:
            return pages_of(group, self.context)
        most = max(pages_of(group, self.context), 1)
        return min(max(1 << (need - 1).bit_length(), PAGES), most)

    def _recorded(self, rows: int, pages: tuple[int, ...], compute: torch.dtype | None) -> _Grid:
        """A step of this shape: compiled, run and recorded on the plan's own request alone."""
        device = self.pool.device
        size = 3 * rows + sum(rows * (1 + 2 * n) for n in pages)
        host = torch.zeros(size, dtype=torch.int64, pin_memory=device.type == "cuda")
        where = torch.zeros(size, dtype=torch.int64, device=device)
        ids, positions, slots, tables = _parts(where, rows, pages, self.pool)
        states = handles(self.pool, tables, slots, positions)
        offsets, limits = tuple(range(rows + 1)), (self.context,) * rows

        def work() -> Tensor:
            step = Step(positions=positions, offsets=offsets, limits=limits, compute=compute)
            for key, value in self._known.items():
                step.know(key, value)
            for turn, (cos, sin) in self._turns.items():
                step.know(turn.key, (cos[positions], sin[positions]))
            x = self.model.input(ids, step)
            for use, index in enumerate(self.model.spec.order()):
                x = self._blocks[index](x, step, states[use])
            out: Tensor = self._tail(x)
            return out

        grid = _Grid(host, host.numpy(), where, work)
        self._fill(grid, (rows, pages, compute), [], [])
        limited = {"recompile_limit": RECORDED, "accumulated_recompile_limit": RECORDED}
        with torch.inference_mode(), torch._dynamo.config.patch(limited):
            return _Grid(host, grid.numbers, where, self._record.record(work))

    def _fill(
        self, grid: _Grid, shape: Shape, ids: Sequence[int], states: Sequence[RequestState]
    ) -> None:
        """What a step reads, to the device; rows without a request are the plan's own."""
        rows, pages, _ = shape
        every = [*states, *[self._spare] * (rows - len(states))]
        numbers, at = grid.numbers, 3 * rows
        numbers[: len(ids)], numbers[len(ids) : rows] = ids, 0
        numbers[rows : 2 * rows] = [state.length for state in every]
        numbers[2 * rows : at] = [state.slot or 0 for state in every]
        for i, (group, count) in enumerate(zip(self.pool.groups, pages, strict=True)):
            slots = numbers[at : at + rows]
            found = numbers[at + rows : at + rows * (1 + count)].reshape(rows, count)
            starts = numbers[at + rows * (1 + count) : at + rows * (1 + 2 * count)]
            starts = starts.reshape(rows, count)
            found[:], starts[:] = self._spare.tables[i].pages[0] or 0, NOWHERE
            for row, state in enumerate(every):
                held = _held(group, state.tables[i], state.length, count)
                slots[row] = held[-1][0] * group.page + (state.length - held[-1][1])
                found[row, : len(held)], starts[row, : len(held)] = zip(*held, strict=True)
            at += rows * (1 + 2 * count)
        grid.device.copy_(grid.host, non_blocking=True)


def _held(group: PageGroup, table: PageTable, length: int, count: int) -> list[tuple[int, int]]:
    """Up to `count` pages that a token after `length` may see, its own last: (page, position of
    its first place). Of a window: those that stay at the beginning, and the last ones."""
    last = (length - table.start) // group.page
    kept = 0
    if group.window is not None:
        kept = min(-(-group.sinks // group.page), last + 1, count - 1)
    shown = [*range(kept), *range(max(last + 1 - (count - kept), kept), last + 1)]
    pages = [(table.pages[n], table.start + n * group.page) for n in shown]
    return [(page, start) for page, start in pages if page is not None]


class _Tail(torch.nn.Module):
    """The last norm and the head."""

    def __init__(self, model: StackModule) -> None:
        super().__init__()
        head: Any = model.head
        self.norm, self.head, self.table = model.norm, head, model.input.table

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, width) -> logits (rows, vocab) float32."""
        out: Tensor = self.head(x if self.norm is None else self.norm(x), self.table)
        return out


def _compiled(module: torch.nn.Module, backend: str | None) -> Any:
    """A module's forward, compiled on its own: layers that are alike share what is compiled."""
    if backend is None:
        return module
    made: Any = torch.compile(module, backend=backend, fullgraph=True, dynamic=False)
    return made


def _turned(turn: Rotary, context: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rotary tables of all positions (context + 1, width / 2)."""
    cos, sin = turn.at(torch.arange(context + 1), context)
    return cos.to(device), sin.to(device)


def _parts(
    where: Tensor, rows: int, pages: tuple[int, ...], pool: StatePool
) -> tuple[Tensor, Tensor, Tensor, list[Table]]:
    """Token ids, positions, slots and a table a group, as views of one run of numbers."""
    sizes = [rows] * 3
    for count in pages:
        sizes += [rows, rows * count, rows * count]
    ids, positions, slots, *rest = where.split(sizes)
    tables = [
        Table(
            page=group.page,
            slots=rest[3 * i],
            pages=rest[3 * i + 1].view(rows, count),
            starts=rest[3 * i + 2].view(rows, count),
        )
        for i, (group, count) in enumerate(zip(pool.groups, pages, strict=True))
    ]
    return ids, positions, slots, tables
