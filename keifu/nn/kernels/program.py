"""A finished tape: its buffers laid out, its operations in the library's own form, ready to run."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import addressof, byref, c_int32
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from keifu.nn.kernels import native
from keifu.nn.kernels.native import Op, Segment, StepData
from keifu.nn.kernels.tape import BY_ROW, CODES, FREE, Buffer, Node, Tape, Value
from keifu.nn.kernels.tiles import GROUP

PER_ROW = (
    *("tokens", "positions", "lengths", "starts", "owners", "coarse", "chosen"),
    *("slots", "offsets"),
)
CHECKED = ("embed", "rotary", "store", "select", "attend")
"""Operations that a step's numbers lead through memory, besides those on a recurrence's state."""
Range = tuple[int, int]
TAKING = ("linear", "attend")
"""Operations whose threads take pieces of the work in turn: one at a time between two barriers."""
TAKEN: Range = (0, 1)
"""Stands for the count of those pieces; no data lies there."""


class Program:
    """Runs a tape on steps of 1 to `rows` tokens; holds on to every tensor that the tape names.

    Not for use by two threads at once: its buffers are its own.
    """

    def __init__(self, tape: Tape) -> None:
        self.rows, self._nodes = tape.rows, list(tape.nodes)
        self._at = _lay_out(tape.buffers, self._nodes, tape.rows)
        size = max((at + b.bytes * tape.rows for b, at in self._at.items()), default=0)
        # NumPy's zeros take no memory before they are written: most steps touch few of the rows.
        self._arena = torch.from_numpy(np.zeros(size + 64, dtype=np.uint8))
        self._base = -(-self._arena.data_ptr() // 64) * 64
        self._scratch = GROUP * max((p.cols for n in self._nodes for p in n.pieces), default=0)
        self._keep: list[Any] = []
        self._ops = (Op * len(self._nodes))(*[self._lower(node) for node in self._nodes])
        self._skip_barriers()
        self._check_alike()
        self._arrays = {name: np.zeros(tape.rows + 1, dtype=np.int32) for name in PER_ROW}
        self._step = StepData(**{n: a.ctypes.data for n, a in self._arrays.items()})
        self._at_step = ctypes.byref(self._step)
        self._laid: list[int] = []
        self._tables: Sequence[NDArray[np.int32]] = ()
        self._views: dict[tuple[Value, int | None], Tensor] = {}
        self._checked, self._told_of = self._checks()

    @property
    def nbytes(self) -> int:
        """Bytes of the activation buffers."""
        return self._arena.numel()

    @property
    def barriers(self) -> int:
        """How often all threads wait for each other in a run."""
        return sum(not op.flags & FREE for op in self._ops)

    def view(self, value: Value, count: int | None = None) -> Tensor:
        """The memory of a value that is an input or an output: (count, width) float32, no copy."""
        found = self._views.get((value, count))
        if found is None:
            if not value.buffer.kept:
                raise ValueError("only inputs and outputs of a tape can be looked at")
            start = self._base - self._arena.data_ptr() + self._at[value.buffer]
            size = value.buffer.bytes * self.rows
            whole = self._arena[start : start + size].view(torch.float32).view(self.rows, -1)
            found = whole[:count, value.first : value.first + value.width]
            self._views[value, count] = found
        return found

    def run(self, **given: Any) -> None:
        """One step over what `lay` takes."""
        self.lay(**given)
        library = native.library()
        self._must(library.kf_check(self._checked, len(self._checked), self._at_step))
        self._must(library.kf_run(self._ops, len(self._ops), self._at_step, self._scratch))

    def go_on(
        self,
        asks: Any,
        ends: Sequence[int],
        hurry: c_int32,
        *,
        most: int,
        seconds: float,
        **given: Any,
    ) -> NDArray[np.int32]:
        """A step over what `lay` takes, then further ones, each over the tokens of the one before.

        The pages of `most` steps must be in the tables, all rows be chosen, and owners have one
        token each.

        Args:
            asks: pointers (tokens,) to the question by which each row's tokens are chosen
                (`native.Choice`), about the row of the output that it is.
            ends: tokens, or numbers below 0, after which there is no further step.
            hurry: not 0 where another thread wants the step that runs to be the last.
            seconds: that they should not take longer than.

        Returns:
            The tokens chosen: (steps, tokens).
        """
        self.lay(**given)
        after = np.array(ends, dtype=np.int32)
        tokens = np.empty((most, self._step.rows), dtype=np.int32)
        how = native.Stride(
            ends=after.ctypes.data, hurry=addressof(hurry), tokens=tokens.ctypes.data,
            seconds=seconds, most=most, end_count=len(after),
        )  # fmt: skip
        self._must(
            native.library().kf_go_on(
                self._checked,
                len(self._checked),
                self._ops,
                len(self._ops),
                self._at_step,
                self._scratch,
                asks,
                byref(how),
            )
        )
        return tokens[: how.made]

    def _must(self, result: int) -> None:
        """Raise what a function of the library says went wrong; 0 is nothing."""
        if result > 0:
            raise ValueError(f"operation {self._told_of[result - 1]}: {self._told()}")
        if result < 0:
            raise MemoryError("the native kernels got no memory or no threads")

    def lay(
        self,
        *,
        tokens: Sequence[int],
        positions: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        owners: ArrayLike | None = None,
        starts: ArrayLike | None = None,
        coarse: ArrayLike | None = None,
        chosen: Sequence[int] | None = None,
        slots: NDArray[np.int32] | None = None,
        tables: Sequence[NDArray[np.int32]] = (),
        requests: int | None = None,
    ) -> None:
        """What the next step works on: everything but `chosen`, `slots` and `tables` (n,) int32.

        Args:
            positions: of each token in its request (tables of positions are indexed with it).
            lengths: slots of its request that a row can reach, its own, the last one, included.
            owners: which row of the page tables is a token's; None is the first for all.
            starts: the first slot that a row may see, where early pages are gone.
            coarse: whether a row's activations meet packed weights in 8 bits, not in 16.
            chosen: rows for `select`, rising.
            slots: (owners,) where each owner keeps the state of recurrences; the tokens of an
                owner then follow one another.
            tables: (owners, pages) int32 page numbers, one table a group of layers.
            requests: how many rows of the tables count; None: all.
        """
        n, step = len(tokens), self._step
        if not 0 < n <= self.rows:
            raise ValueError(f"a step of {n} tokens on a tape for 1 to {self.rows}")
        arrays = self._arrays
        arrays["tokens"][:n] = tokens
        arrays["positions"][:n] = 0 if positions is None else positions
        arrays["lengths"][:n] = 0 if lengths is None else lengths
        arrays["owners"][:n] = 0 if owners is None else owners
        arrays["starts"][:n] = 0 if starts is None else starts
        step.rows, step.count, step.coarse = n, 0, None
        if coarse is not None:
            arrays["coarse"][:n] = coarse
            step.coarse = arrays["coarse"].ctypes.data
        if chosen is not None:
            step.count = len(chosen)
            arrays["chosen"][: step.count] = chosen
        step.runs = 0 if slots is None else self._runs(n, slots)
        self._lay(tables, requests)

    def _lay(self, tables: Sequence[NDArray[np.int32]], requests: int | None) -> None:
        """Tell the step where its page tables are."""
        step, held = self._step, list(map(id, tables))
        rows = min(map(len, tables), default=0)
        step.requests = rows if requests is None else requests
        if step.requests > rows and tables:
            raise ValueError(f"{requests} requests in a page table of {rows} rows")
        if held == self._laid:
            return
        for i, table in enumerate(tables):
            if table.dtype != np.int32 or not table.flags.c_contiguous or table.ndim != 2:
                raise ValueError("page tables must be contiguous int32 arrays (owners, pages)")
            step.tables[i], step.table_strides[i] = table.ctypes.data, table.shape[1]
        for i in range(len(tables), native.TABLES):
            step.tables[i] = None
        self._laid, self._tables = held, tables

    def _runs(self, n: int, slots: NDArray[np.int32]) -> int:
        """Where each owner's tokens begin and where its state lies; returns how many there are."""
        owners, offsets = self._arrays["owners"][:n], self._arrays["offsets"]
        if owners.min() < 0 or owners.max() >= len(slots):
            raise ValueError(f"owners {owners.tolist()} of {len(slots)} slots")
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        count = len(starts)
        offsets[:count], offsets[count] = starts, n
        self._arrays["slots"][:count] = slots[owners[starts]]
        return count

    def _checks(self) -> tuple[ctypes.Array[Op], list[str]]:
        """The operations that a step is checked for, with their names: of those alike, one."""
        found: dict[tuple[Any, ...], int] = {}
        for i, (op, node) in enumerate(zip(self._ops, self._nodes, strict=True)):
            if node.code in CHECKED or op.state:
                key = (op.code, op.flags & BY_ROW, op.limit, op.offset, op.table, bool(op.rotated))
                found.setdefault(key, i)
        wanted = list(found.values())
        names = [f"{i} ({self._nodes[i].code})" for i in wanted]
        return (Op * len(wanted))(*[self._ops[i] for i in wanted]), names

    def _told(self) -> str:
        ends = {"chosen": self._step.count, "slots": self._step.runs, "offsets": self._step.runs}
        n = self._step.rows
        said = {name: a[: ends.get(name, n)].tolist() for name, a in self._arrays.items()}
        return f"the step leads out of its tables: {said}"

    def _address(self, value: Value) -> int:
        return self._base + self._at[value.buffer] + 4 * value.first

    def _lower(self, node: Node) -> Op:
        op = Op(code=CODES[node.code], flags=node.flags, heads=1, scale=1.0)
        for name in node.fields:
            setattr(op, name, node.fields[name])
        for name, value in (
            ("input", node.input),
            ("other", node.other),
            ("third", node.third),
            ("out", node.out),
        ):
            if value is not None:
                setattr(op, name, self._address(value))
                stride = {"input": "in_stride"}.get(name, f"{name}_stride")
                setattr(op, stride, value.buffer.bytes // 4)
        if node.codes is not None:
            op.codes = self._base + self._at[node.codes]
        if node.partial is not None:
            op.partial = self._base + self._at[node.partial]
        for name, tensor in node.tensors.items():
            if name in ("weight", "bias", "slopes"):
                tensor = tensor.detach().float().contiguous()
            elif name in ("cosines", "sines") and tensor.dtype != torch.float32:
                raise ValueError(f"rotary tables must be float32, not {tensor.dtype}")
            # State and tables are read where they lie: the caller goes on writing to them.
            if not tensor.is_contiguous() or tensor.device.type != "cpu":
                raise ValueError(f"{name} must be contiguous and on the CPU")
            self._keep.append(tensor)
            setattr(op, name, tensor.data_ptr())
        if node.pieces:
            op.segment, op.segments = self._segments(node), len(node.pieces)
        return op

    def _segments(self, node: Node) -> ctypes.Array[Segment]:
        firsts = accumulate((p.rows for p in node.pieces), initial=0)
        columns = node.columns or [0] * len(node.pieces)
        made = [
            Segment(
                data=p.data.data_ptr(),
                group_bytes=p.group_bytes,
                format=p.code,
                rows=p.rows,
                cols=p.cols,
                first=first,
                from_=column,
            )
            for p, first, column in zip(node.pieces, firsts, columns, strict=False)
        ]
        array = (Segment * len(made))(*made)
        self._keep += [array, *(p.data for p in node.pieces)]
        return array

    def _skip_barriers(self) -> None:
        """An operation starts at once if others since the last barrier leave its data alone."""
        written: list[Range] = []
        touched: list[Range] = []
        for node, op in zip(self._nodes, self._ops, strict=True):
            reads = [self._range(what) for what in node.reads]
            writes = [self._range(what) for what in node.writes]
            if node.code in TAKING:
                writes.append(TAKEN)
            if _meet(writes, touched) or _meet(reads, written):
                written, touched = [], []
            else:
                op.flags |= FREE
            written += writes
            touched += reads + writes

    def _range(self, what: Buffer | Tensor) -> Range:
        if isinstance(what, Tensor):
            return what.data_ptr(), what.data_ptr() + what.numel() * what.element_size()
        start = self._base + self._at[what]
        return start, start + what.bytes * self.rows

    def _check_alike(self) -> None:
        """Pages of one table are checked once a step: all its layers must hold as many."""
        limits: dict[int, set[tuple[int, int]]] = {}
        for op, node in zip(self._ops, self._nodes, strict=True):
            if node.code == "attend":
                limits.setdefault(op.table, set()).add((op.limit, op.page_shift))
        if any(len(kinds) > 1 for kinds in limits.values()):
            raise ValueError(f"layers of one page table differ in (pages, page bits): {limits}")
        if any(not 0 <= table < native.TABLES for table in limits):
            raise ValueError(f"page tables are numbered 0 to {native.TABLES - 1}: {sorted(limits)}")


def _meet(some: list[Range], others: list[Range]) -> bool:
    return any(a < d and c < b for a, b in some for c, d in others)


def _lay_out(buffers: Sequence[Buffer], nodes: Sequence[Node], rows: int) -> dict[Buffer, int]:
    """An offset for each buffer such that those alive at the same time do not overlap."""
    lives: dict[Buffer, Range] = {}
    for i, node in enumerate(nodes):
        for what in (*node.reads, *node.writes):
            if isinstance(what, Buffer):
                lives[what] = (lives.get(what, (i, i))[0], i)
    for buffer in buffers:
        if buffer.kept:
            lives[buffer] = (-1, len(nodes))
    placed: dict[Buffer, int] = {}
    for buffer in sorted(lives, key=lambda b: lives[b]):
        born, dies = lives[buffer]
        alive = [
            (at, at + other.bytes * rows)
            for other, at in placed.items()
            if lives[other][0] <= dies and born <= lives[other][1]
        ]
        at = 0
        for start, end in sorted(alive):
            if at + buffer.bytes * rows <= start:
                break
            at = max(at, end)
        placed[buffer] = at
    return placed
