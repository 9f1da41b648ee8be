"""Recurrent token mixers: the simple RNN, the LSTM and the GRU, over ragged rows.

Depth is several blocks: wiring `Plain` makes the classic stack, `Pre` a residual one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keifu.nn.activations import ACTIVATIONS
from keifu.nn.dropout import WeightDrop
from keifu.nn.linear import Linear
from keifu.nn.part import Initialised, Part
from keifu.nn.state import Entry, Fixed, Handle
from keifu.nn.step import Step

Carry = tuple[Tensor, ...]
"""What a recurrence hands from token to token: one (rows, ...) tensor each."""
Cell = Callable[[Tensor, Carry], tuple[Tensor, Carry]]
"""Inputs (rows, ...) of one moment and the carry -> outputs (rows, ...) and the next carry."""


class Packing:
    """Ragged rows moment by moment, the longest first.

    Those still running are always the leading ones, so that no cell ever sees padding.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        size = torch.tensor(lengths)
        order = size.argsort(descending=True, stable=True)
        moment = torch.arange(max(lengths))[:, None]
        running = moment < size[order]
        index = ((size.cumsum(0) - size)[order] + moment)[running]
        self.counts: list[int] = running.sum(1).tolist()
        """Rows that run at each moment."""
        self.rows, self.places = order.to(device), index.to(device)
        """The rows and the tokens in this order."""

    def pack(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Tokens and carries from their own order to this one."""
        return x[self.places], tuple(c[self.rows] for c in carry)

    def unpack(self, y: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """And back."""
        back = self.rows.argsort()
        return y[self.places.argsort()], tuple(c[back] for c in carry)


def walk(cell: Cell, x: Tensor, lengths: Sequence[int], carry: Carry) -> tuple[Tensor, Carry]:
    """A recurrence over ragged rows, moment after moment.

    Args:
        x: (tokens, ...) the rows one after another, `lengths` long.
        carry: for each row; a row without tokens keeps its own.

    Returns:
        Outputs (tokens, ...) and the carry after each row's last moment.
    """
    if all(n == 1 for n in lengths):
        return cell(x, carry)
    packing = Packing(lengths, x.device)
    x, carry = packing.pack(x, carry)
    outs: list[Tensor] = []
    ended: list[Carry] = []
    for inputs, rows in zip(x.split(packing.counts), packing.counts, strict=True):
        if rows < carry[0].shape[0]:
            ended.append(tuple(c[rows:] for c in carry))
            carry = tuple(c[:rows] for c in carry)
        out, carry = cell(inputs, carry)
        outs.append(out)
    last = zip(carry, *reversed(ended), strict=True)
    return packing.unpack(torch.cat(outs), tuple(torch.cat(c) for c in last))


@dataclass(frozen=True, kw_only=True)
class Recurrent(Part):
    """Base of the recurrent mixers: x (tokens, width) -> (tokens, hidden)."""

    gates: ClassVar[tuple[str, ...]]

    width: int
    hidden: int
    bias: bool = True
    drop: WeightDrop | None = None
    """Hidden-to-hidden weights that vanish while training (AWD-LSTM)."""

    @property
    def out(self) -> int:
        """Width of the output, which is what the next moment reads."""
        return self.hidden

    def state(self) -> Mapping[str, Entry]:
        """The last output, "h"."""
        return {"h": Fixed((self.out,))}


class _Recurrent(Initialised):
    """Input products of all tokens at once, then the cell from moment to moment.

    Where the weights allow it, torch's own function does both: a test holds the two equal.
    """

    def __init__(self, spec: Recurrent) -> None:
        super().__init__()
        self.spec = spec
        rows = dict.fromkeys(spec.gates, spec.hidden)
        size = spec.hidden * len(rows)
        self.ih = Linear(spec.width, size, bias=spec.bias, rows=rows)
        self.hh = Linear(spec.out, size, bias=spec.bias, rows=rows)

    def cell(self, x: Tensor, carry: Carry, dropped: Tensor | None = None) -> tuple[Tensor, Carry]:
        """One moment: input products x (rows, gates), the carry, and weights in place of hh's."""
        raise NotImplementedError

    def whole(self) -> Callable[..., tuple[Tensor, ...]] | None:
        """torch's function for all moments at once, where it has one for this cell."""
        raise NotImplementedError

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        """x (tokens, width) -> (tokens, out)."""
        entries = self.spec.state()
        if state is None:
            carry = tuple(x.new_zeros(step.rows, *e.shape) for e in entries.values())
        else:
            carry = tuple(state.get(name).to(x.dtype) for name in entries)
        drop = self.spec.drop if self.training else None
        dropped = None if drop is None else drop.of(self.hh)
        if self._fits(x):
            y, carry = self._at_once(x, step.lengths(), carry, dropped)
        else:
            cell = partial(self.cell, dropped=dropped)
            y, carry = walk(cell, self.ih(x), step.lengths(), carry)
        if state is not None:
            for name, value in zip(entries, carry, strict=True):
                state.set(name, value)
        return y

    def recur(self, h: Tensor, dropped: Tensor | None) -> Tensor:
        """The hidden-to-hidden product (rows, out) -> (rows, gates)."""
        return self.hh(h) if dropped is None else F.linear(h, dropped, self.hh.bias)

    def _fits(self, x: Tensor) -> bool:
        """Whether torch's function takes these weights: dense, of one type, without deltas."""
        matrices = [m for m in self.children() if isinstance(m, Linear)]
        return (
            self.whole() is not None
            and all(m.weight is not None and not m.deltas for m in matrices)
            and all(p.dtype == x.dtype for p in self.parameters())
        )

    def _at_once(
        self, x: Tensor, lengths: Sequence[int], carry: Carry, dropped: Tensor | None
    ) -> tuple[Tensor, Carry]:
        """As `walk` over `cell`, by torch's function: x (tokens, width), a fifth of the time."""
        packing = Packing(lengths, x.device)
        x, carry = packing.pack(x, carry)
        running = packing.counts[0]
        start = [c[None, :running] for c in carry]
        hh = self.hh.weight if dropped is None else dropped
        biases = (self.ih.bias, self.hh.bias) if self.spec.bias else ()
        more = [m.weight for m in self.children() if m is not self.ih and m is not self.hh]
        run = self.whole()
        assert run is not None
        y, *last = run(
            x,
            torch.tensor(packing.counts),
            start if len(start) > 1 else start[0],
            [self.ih.weight, hh, *biases, *more],
            self.spec.bias,
            1,
            0.0,
            self.training,
            False,
        )
        after = (torch.cat([a[0], c[running:]]) for a, c in zip(last, carry, strict=True))
        return packing.unpack(y, tuple(after))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """U(-1/sqrt(hidden), 1/sqrt(hidden)), biases too."""
        bound = self.spec.hidden**-0.5
        for parameter in self.parameters():
            parameter.uniform_(-bound, bound, generator=generator)


@dataclass(frozen=True, kw_only=True)
class RNN(Recurrent):
    """h = act(W x + U h) (Elman 1990)."""

    gates: ClassVar[tuple[str, ...]] = ("h",)
    act: str = "tanh"

    def build(self) -> nn.Module:
        """`ih` and `hh`."""
        return _RNN(self)


class _RNN(_Recurrent):
    spec: RNN

    def whole(self) -> Callable[..., tuple[Tensor, ...]] | None:
        return {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}.get(self.spec.act)

    def cell(self, x: Tensor, carry: Carry, dropped: Tensor | None = None) -> tuple[Tensor, Carry]:
        h = ACTIVATIONS[self.spec.act](x + self.recur(carry[0], dropped))
        return h, (h,)


@dataclass(frozen=True, kw_only=True)
class LSTM(Recurrent):
    """c = f * c + i * g, h = o * tanh(c) (Hochreiter & Schmidhuber 1997; Gers et al. 2000)."""

    gates: ClassVar[tuple[str, ...]] = ("i", "f", "g", "o")
    project: int | None = None
    """h is projected to this width (Sak et al. 2014)."""

    @property
    def out(self) -> int:
        """The projection's width where there is one."""
        return self.project or self.hidden

    def build(self) -> nn.Module:
        """`ih` and `hh` with rows "i", "f", "g", "o"; `project` where there is one."""
        return _LSTM(self)

    def state(self) -> Mapping[str, Entry]:
        """The last output "h" and the cell "c"."""
        return {"h": Fixed((self.out,)), "c": Fixed((self.hidden,))}


class _LSTM(_Recurrent):
    spec: LSTM

    def __init__(self, spec: LSTM) -> None:
        super().__init__(spec)
        self.project = Linear(spec.hidden, spec.project) if spec.project else None

    def whole(self) -> Callable[..., tuple[Tensor, ...]]:
        return torch.lstm

    def cell(self, x: Tensor, carry: Carry, dropped: Tensor | None = None) -> tuple[Tensor, Carry]:
        h, c = carry
        i, f, g, o = (x + self.recur(h, dropped)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        if self.project is not None:
            h = self.project(h)
        return h, (h, c)


@dataclass(frozen=True, kw_only=True)
class GRU(Recurrent):
    """h = (1 - z) * tanh(W x + r * U h) + z * h (Cho et al. 2014, the reset after the product)."""

    gates: ClassVar[tuple[str, ...]] = ("r", "z", "n")

    def build(self) -> nn.Module:
        """`ih` and `hh` with rows "r", "z", "n"."""
        return _GRU(self)


class _GRU(_Recurrent):
    def whole(self) -> Callable[..., tuple[Tensor, ...]]:
        return torch.gru

    def cell(self, x: Tensor, carry: Carry, dropped: Tensor | None = None) -> tuple[Tensor, Carry]:
        (h,) = carry
        xr, xz, xn = x.chunk(3, dim=-1)
        hr, hz, hn = self.recur(h, dropped).chunk(3, dim=-1)
        z = torch.sigmoid(xz + hz)
        n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
        h = (1 - z) * n + z * h
        return h, (h,)


def backwards(step: Step) -> Tensor:
    """Indices (tokens,) that turn each row of a ragged step round; twice is as before."""
    spans = [step.span(row) for row in range(step.rows)]
    return torch.cat([torch.arange(s.start, s.stop, device=step.device).flip(0) for s in spans])


@dataclass(frozen=True, kw_only=True)
class Bidirectional(Part):
    """One mixer along the row, one against it, side by side (Schuster & Paliwal 1997)."""

    along: Part
    against: Part

    def build(self) -> nn.Module:
        """`along` and `against`."""
        return _Bidirectional(self)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What each of them reads: all of it."""
        return x, x


class _Bidirectional(nn.Module):
    def __init__(self, spec: Bidirectional) -> None:
        super().__init__()
        self.spec = spec
        self.along, self.against = spec.along.build(), spec.against.build()

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        """x (tokens, width) -> (tokens, both widths)."""
        if state is not None:
            raise ValueError("a bidirectional mixer keeps no state")
        first, second = self.spec.parts(x)
        turned = backwards(step)
        back = self.against(second[turned], step, None)[turned]
        return torch.cat([self.along(first, step, None), back], dim=-1)
