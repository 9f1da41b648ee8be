"""A tape: a flat program of native operations that one call runs, without Python per operation.

Build it once for a model: values are columns of activation buffers, each method appends an
operation and returns the value it makes. `Program(tape)` (program.py) lays the buffers out, those
whose lives do not overlap in the same memory, and finds which operations may start without waiting
for the one before. The arithmetic of a row never depends on the other rows, nor on the threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from keifu.core.errors import unknown
from keifu.nn.kernels import native
from keifu.nn.kernels.paged import paged
from keifu.nn.kernels.tiles import Tiled

CODES = {
    name: code
    for code, name in enumerate(
        (
            *("embed", "norm", "quantise", "linear", "rotary", "store", "attend", "merge"),
            *("activate", "combine", "select", "filter", "selective", "ssd", "lru"),
        )
    )
}
KINDS = {
    name: kind
    for kind, name in enumerate(
        ("identity", "relu", "relu2", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid", "tanh")
    )
}
SUM, SCALE, SOFTCAP, CLAMP = range(4)
ADD, CHOSEN, EXACT, FREE, BY_ROW, _, LAYER, INTERLEAVED, CACHED = (1 << i for i in range(9))
BLOCK, SPANS = 32, 16


@dataclass(eq=False)
class Buffer:
    """Memory for `bytes` a row of the step (or of its chosen rows)."""

    bytes: int
    chosen: bool = False
    kept: bool = False
    """Written or read by the caller, so it shares its memory with no other."""
    writer: Node | None = None
    codes: dict[tuple[int, int], Buffer] = field(default_factory=dict)
    """8-bit copies of columns (first, width) that are up to date."""


@dataclass(frozen=True, eq=False)
class Value:
    """Columns first...first + width of a buffer of float32 activations."""

    buffer: Buffer
    first: int
    width: int

    def __getitem__(self, columns: slice) -> Value:
        start, stop, step = columns.indices(self.width)
        if step != 1 or stop <= start:
            raise ValueError(f"columns {start}:{stop} of a value {self.width} wide")
        return Value(self.buffer, self.first + start, stop - start)

    def split(self, *widths: int) -> tuple[Value, ...]:
        """Consecutive columns."""
        if sum(widths) != self.width:
            raise ValueError(f"{widths} do not add up to {self.width} columns")
        ends = [sum(widths[: i + 1]) for i in range(len(widths))]
        return tuple(self[end - w : end] for end, w in zip(ends, widths, strict=True))


@dataclass(eq=False)
class Node:
    """An operation before it is laid out: plain fields, values, and what it reads and writes."""

    code: str
    flags: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    input: Value | None = None
    other: Value | None = None
    third: Value | None = None
    out: Value | None = None
    codes: Buffer | None = None
    partial: Buffer | None = None
    pieces: Sequence[Tiled] = ()
    columns: Sequence[int] = ()
    """The first input column of each piece, where that is not 0 for all."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    reads: list[Any] = field(default_factory=list)
    """Buffers and state tensors."""
    writes: list[Any] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, eq=False)
class Turn:
    """Rotary tables: cos and sin (entries, width / 2) float32, contiguous.

    An entry is a position of the request, or (`by_row`) a row of the step: then whoever runs the
    tape writes the step's rows into the tables first.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool = False
    by_row: bool = False


class Tape:
    """Builds a program for steps of up to `rows` tokens; see the module.

    `exact` multiplies in float32 with decoded weights; otherwise packed weights meet activations
    of 8 bits a block of 32.
    """

    def __init__(self, rows: int, *, exact: bool = False) -> None:
        self.rows, self.exact = rows, exact
        self.nodes: list[Node] = []
        self.buffers: list[Buffer] = []

    def input(self, width: int) -> Value:
        """A value that the caller writes before each run, through `Program.view`."""
        value = self.value(width, chosen=False)
        value.buffer.kept = True
        return value

    def output(self, x: Value) -> Value:
        """Keep a value until after the run, for `Program.view`."""
        x.buffer.kept = True
        return x

    def embed(
        self,
        table: Tiled,
        *,
        by: str = "token",
        offset: int = 0,
        scale: float = 1.0,
        into: Value | None = None,
    ) -> Value:
        """Rows of a table by token or by position + offset; `into` adds to an earlier value."""
        if by not in ("token", "position"):
            raise unknown("index of a table", by, ("token", "position"))
        out = into or self.value(table.cols, chosen=False)
        flags = (ADD if into else 0) | (BY_ROW if by == "token" else 0)
        numbers = {"width": table.cols, "scale": scale, "offset": offset, "limit": table.rows}
        self.append(Node("embed", flags, numbers, out=out, pieces=[table]))
        return out

    def norm(
        self,
        x: Value,
        weight: Tensor | None,
        bias: Tensor | None = None,
        *,
        eps: float,
        kind: str = "rms",
        heads: int = 1,
        into: Value | None = None,
    ) -> Value:
        """RMS or layer norm of each of `heads` equal parts of x.

        weight, bias: one part's (width / heads,), or (heads, width / heads) for each its own.
        """
        if kind not in ("rms", "layer"):
            raise unknown("norm", kind, ("rms", "layer"))
        out = into or self.value(x.width, chosen=x.buffer.chosen)
        width = x.width // heads
        tensors = _given(weight=weight, bias=bias)
        apart = width if weight is not None and weight.numel() == x.width and heads > 1 else 0
        if any(t.numel() != (heads * width if apart else width) for t in tensors.values()):
            raise ValueError(f"norm weights do not fit {heads} parts of {width}")
        numbers = {"width": width, "heads": heads, "eps": eps, "other_stride": apart}
        flags = LAYER if kind == "layer" else 0
        self.append(Node("norm", flags, numbers, input=x, out=out, tensors=tensors))
        return out

    def linear(
        self,
        x: Value,
        pieces: Sequence[Tiled],
        bias: Tensor | None = None,
        *,
        into: Value | None = None,
        add: bool = False,
        columns: Sequence[int] = (),
    ) -> Value:
        """x times the rows of all pieces, one after another; `add` adds to `into`.

        columns: where in x each piece's columns begin (block-diagonal matrices); else at 0.
        """
        width, starts = sum(p.rows for p in pieces), columns or (0,) * len(pieces)
        inside = all(
            at >= 0 and at + p.cols <= x.width and (p.dense or at % BLOCK == 0)
            for p, at in zip(pieces, starts, strict=True)
        )
        whole = columns or all(p.cols == x.width for p in pieces)
        if not (inside and whole) or (into is not None and into.width != width):
            raise ValueError(f"pieces {[(p.rows, p.cols) for p in pieces]} do not fit {x.width}")
        out = into or self.value(width, chosen=x.buffer.chosen)
        node = Node("linear", (ADD if add else 0) | (EXACT if self.exact else 0))
        node.fields, node.columns = {"width": x.width}, starts
        node.input, node.out, node.pieces, node.tensors = x, out, pieces, _given(bias=bias)
        if not self.exact and not all(p.dense for p in pieces):
            node.codes = self._codes(x)
            node.reads.append(node.codes)
        self.append(node)
        return out

    def rotary(self, x: Value, turn: Turn, *, heads: int) -> Value:
        """Rotate the first 2 * turn columns of each head of x, in place."""
        node = Node("rotary", 0, {"width": x.width // heads, "heads": heads}, input=x, out=x)
        self._turn(node, turn)
        self.append(node)
        return x

    def attend(
        self,
        q: Value,
        k: Value,
        v: Value,
        keys: Tensor,
        values: Tensor,
        *,
        page: int,
        scale: float,
        turn: Turn | None = None,
        softcap: float | None = None,
        slopes: Tensor | None = None,
        window: int | None = None,
        sinks: int = 0,
        cached: bool = False,
        back: Turn | None = None,
        table: int = 0,
    ) -> Value:
        """Store k and v at each row's slot, then attend to the slots that the row may see.

        Args:
            keys, values: state (slots, kv_heads, head_width), bfloat16 or float32, or codes
                (`forms.Coded`); a slot is page * number + offset, the number from the step's
                page table `table`.
            turn: rotates q (in place) and k on the way.
            slopes: (heads,) ALiBi: a score loses slope times the distance.
            window: slots a row sees, its own among them; besides them the `sinks` first ones.
            cached: ALiBi's distance to a sink is that in the cache: the sinks, then the window.
            back: turns q once more, by the row of the step, where it meets the sinks.
        """
        if k.width != v.width:
            raise ValueError(f"keys are {k.width} wide and values {v.width}")
        laid = paged(keys, values, page, q=q.width, kv=k.width)
        flags, head, heads = laid.flag, laid.head, q.width // laid.head
        numbers: dict[str, Any] = {"width": head, "heads": heads, "kv_heads": laid.kv_heads}
        numbers |= {"table": table, "page_shift": page.bit_length() - 1}
        numbers |= {"window": window or 0, "sinks": sinks, "limit": laid.pages}
        state = {"keys": keys, "values": values}
        store = Node("store", flags, dict(numbers), input=k, other=v, out=q, tensors=dict(state))
        if turn is not None:
            self._turn(store, turn)
        store.writes += [keys, values]
        store.reads.append(q.buffer)
        self.append(store)
        partial = self._buffer(heads * SPANS * (-(-head // 32) * 32 + 16) * 4, chosen=False)
        look = Node("attend", flags, numbers | {"scale": scale, "cap": softcap or 0.0}, input=q)
        look.tensors, look.partial = state | _given(slopes=slopes), partial
        look.flags |= CACHED if cached else 0
        if back is not None:
            if not back.by_row:
                raise ValueError("queries turn back to the sinks by the row of the step")
            self._turn(look, back)
            look.fields["limit"] = numbers["limit"]
        look.reads += [keys, values]
        look.writes.append(partial)
        self.append(look)
        out = self.value(q.width, chosen=False)
        join = Node("merge", flags, dict(numbers), out=out, partial=partial)
        join.reads.append(partial)
        self.append(join)
        return out

    def activate(self, kind: str, x: Value, gated: Value | None = None) -> Value:
        """act(x), or act(x) * gated."""
        if kind not in KINDS:
            raise unknown("activation", kind, KINDS)
        out = self.value(x.width, chosen=x.buffer.chosen)
        fields = {"width": x.width, "kind": KINDS[kind]}
        self.append(Node("activate", 0, fields, input=x, other=gated, out=out))
        return out

    def add(self, x: Value, y: Value, *, scale: float = 1.0, into: Value | None = None) -> Value:
        """scale * x + y."""
        return self._combine(SUM, x, y, into, scale=scale)

    def scale(self, x: Value, by: float, *, into: Value | None = None) -> Value:
        """by * x; by 1 it is a copy."""
        return self._combine(SCALE, x, None, into, scale=by)

    def softcap(self, x: Value, cap: float, *, into: Value | None = None) -> Value:
        """cap * tanh(x / cap)."""
        return self._combine(SOFTCAP, x, None, into, cap=cap)

    def clamp(self, x: Value, low: float, high: float, *, into: Value | None = None) -> Value:
        """x between low and high."""
        return self._combine(CLAMP, x, None, into, low=low, high=high)

    def select(self, x: Value) -> Value:
        """The rows that `run` was told to choose; everything made from them has as many."""
        out = self.value(x.width, chosen=True)
        self.append(Node("select", 0, {"width": x.width}, input=x, out=out))
        return out

    def _combine(
        self, kind: int, x: Value, y: Value | None, into: Value | None, **numbers: float
    ) -> Value:
        out = into or self.value(x.width, chosen=x.buffer.chosen)
        if out.width != x.width or (y is not None and y.width != x.width):
            raise ValueError(f"cannot combine values of different widths with one of {x.width}")
        fields = {"width": x.width, "kind": kind, **numbers}
        self.append(Node("combine", 0, fields, input=x, other=y, out=out))
        return out

    def _turn(self, node: Node, turn: Turn) -> None:
        half = turn.cos.shape[1]
        if turn.sin.shape != turn.cos.shape or 2 * half > node.fields["width"]:
            raise ValueError(f"rotary tables {tuple(turn.cos.shape)} do not fit the heads")
        node.tensors |= {"cosines": turn.cos, "sines": turn.sin}
        if turn.by_row and turn.cos.shape[0] < self.rows:
            raise ValueError(f"rotary tables by row need {self.rows} entries, not {len(turn.cos)}")
        node.fields |= {"rotated": 2 * half, "limit": turn.cos.shape[0]}
        node.flags |= (INTERLEAVED if turn.interleaved else 0) | (BY_ROW if turn.by_row else 0)

    def _buffer(self, size: int, *, chosen: bool) -> Buffer:
        # An odd number of cache lines: rows of an even one fall on few of the cache's sets.
        lines = -(-size // 64) | 1
        buffer = Buffer(64 * lines, chosen)
        self.buffers.append(buffer)
        return buffer

    def value(self, width: int, *, chosen: bool = False) -> Value:
        """Room for a value, of all rows or of the chosen ones."""
        return Value(self._buffer(width * 4, chosen=chosen), 0, width)

    def _codes(self, x: Value) -> Buffer:
        """The 8-bit copy of x: made by the operation that writes x where it can, else here."""
        key = (x.first, x.width)
        if key not in x.buffer.codes:
            if x.width % BLOCK:
                raise ValueError(f"packed weights need whole blocks of {BLOCK}, not {x.width}")
            size: int = native.library().kf_codes_size(x.width)
            codes = self._buffer(size, chosen=x.buffer.chosen)
            maker = x.buffer.writer
            if maker is None or not _makes_codes(maker, x):
                maker = Node("quantise", 0, {"width": x.width}, input=x)
                self.append(maker)
            maker.codes = codes
            maker.writes.append(codes)
            x.buffer.codes[key] = codes
        return x.buffer.codes[key]

    def append(self, node: Node) -> None:
        """Add an operation; what it reads and writes besides its values, the node says."""
        for value in (node.input, node.other, node.third):
            if value is not None:
                node.reads.append(value.buffer)
        if node.out is not None:
            node.out.buffer.codes.clear()
            node.out.buffer.writer = node
            node.writes.append(node.out.buffer)
            if node.flags & ADD:
                node.reads.append(node.out.buffer)
        if node.out is not None and node.out.buffer.chosen:
            node.flags |= CHOSEN
        self.nodes.append(node)


def _given(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: t for name, t in tensors.items() if t is not None}


def _makes_codes(node: Node, x: Value) -> bool:
    """Whether the operation that wrote x can leave an 8-bit copy on the way."""
    out = node.out
    if out is None or node.codes is not None or (out.first, out.width) != (x.first, x.width):
        return False
    if node.code == "norm":
        return bool(node.fields["heads"] == 1)
    if node.code == "merge":
        return bool(node.fields["width"] % BLOCK == 0)
    return node.code == "activate"
