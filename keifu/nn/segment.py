"""Pieces of rows inside their segments, and the state of one segment."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keifu.nn.handles import View, alone
from keifu.nn.state import Handle
from keifu.nn.step import Step


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Tokens of one row that a step brings to one segment."""

    row: int
    start: int
    """Index of the first among the step's tokens."""
    count: int
    phase: int
    """Tokens that the segment had before."""
    closes: bool
    """Whether the segment ends with them."""
    after: int
    """Segments of this row that follow in this step."""

    @property
    def opens(self) -> bool:
        """Whether the segment begins with them."""
        return self.phase == 0


class Wave:
    """One piece of some rows, and where it lies among the places that run.

    Args:
        lead, tail: places before and after a segment's tokens.
    """

    def __init__(self, pieces: Sequence[Piece], lead: int, tail: int, outer: Step) -> None:
        self.pieces, self._outer = pieces, outer
        ends = [p.opens * lead + p.count + p.closes * tail for p in pieces]
        self.offsets = (0, *itertools.accumulate(ends))
        counts = [p.count for p in pieces]
        begins = [at + p.opens * lead for at, p in zip(self.offsets, pieces, strict=False)]
        self.at = joined(begins, counts, outer.device)
        """(tokens,) the places where tokens are."""
        self.source = joined([p.start for p in pieces], counts, outer.device)
        """(tokens,) which tokens of the outer step they are."""
        self.past = [0 if p.opens else lead + p.phase for p in pieces]
        """Places of its segment that each piece finds."""

    @property
    def whole(self) -> bool:
        """Whether every piece is all of its segment."""
        return all(p.opens and p.closes for p in self.pieces)

    def step(self, limit: int) -> Step:
        """The step that runs it: positions from each segment's start on."""
        lengths = [b - a for a, b in itertools.pairwise(self.offsets)]
        outer = self._outer
        return Step(
            positions=joined(self.past, lengths, outer.device),
            offsets=self.offsets,
            limits=(limit,) * len(self.pieces),
            segments=None if outer.segments is None else self._spread(outer.segments),
            kinds={name: self._spread(ids) for name, ids in outer.kinds.items()},
            compute=outer.compute,
            emit=outer.emit,
        )

    def _spread(self, ids: Tensor) -> Tensor:
        """Ids of the outer step's tokens (tokens,), 0 where other things are."""
        out = ids.new_zeros(self.offsets[-1])
        out[self.at] = ids[self.source]
        return out


def joined(begins: Sequence[int], counts: Sequence[int], device: torch.device) -> Tensor:
    """Ranges of whole numbers one after another."""
    pairs = zip(begins, counts, strict=True)
    return torch.cat([torch.arange(b, b + n, device=device) for b, n in pairs])


def cut(step: Step, segment: int, *, ends: bool = False) -> Iterator[list[Piece]]:
    """Each row's tokens at its segments' borders: the first piece of all rows, the second ...

    Args:
        ends: a row's last piece closes its segment even if that is not full.
    """
    rows = []
    for row, (first, end) in enumerate(zip(step.offsets, step.offsets[1:], strict=False)):
        pieces, at = [], first
        past = int(step.positions[first]) if end > first else 0
        while at < end:
            phase = past % segment
            count = min(segment - phase, end - at)
            closes = phase + count == segment or (ends and at + count == end)
            after = -(-(end - at - count) // segment)
            pieces.append(
                Piece(row=row, start=at, count=count, phase=phase, closes=closes, after=after)
            )
            at, past = at + count, past + count
        rows.append(pieces)
    for n in range(max(map(len, rows), default=0)):
        yield [pieces[n] for pieces in rows if n < len(pieces)]


class Within:
    """A use's state inside the current segments of a wave: what was a token's is in a buffer.

    A segment starts from nothing: what the buffer holds of the one before is never read, and fixed
    entries of a recurrence are zero again.
    """

    def __init__(self, handle: Handle, wave: Wave) -> None:
        self._handle, self._past = handle, wave.past
        self._rows = [p.row for p in wave.pieces]
        self._spans = [slice(a, b) for a, b in itertools.pairwise(wave.offsets)]
        self._buffers: dict[str, Tensor] = {}

    def append(self, name: str, new: Tensor) -> None:
        """Write the wave's places into the rows' buffers."""
        held = self._handle.get(name)
        for row, past, at in zip(self._rows, self._past, self._spans, strict=True):
            held[row, past : past + at.stop - at.start] = new[at].to(held.dtype)
        self._handle.set(name, held)
        self._buffers[name] = held

    def read(self, name: str, row: int) -> tuple[Tensor, Tensor]:
        """The segment so far."""
        at = self._spans[row]
        end = self._past[row] + at.stop - at.start
        values = self._buffers[name][self._rows[row], :end]
        return values, torch.arange(end, device=values.device)

    def views(self, *names: str) -> Iterator[View]:
        """Row by row."""
        return alone(self, len(self._rows), names)

    def get(self, name: str) -> Tensor:
        """A fixed entry of the wave's rows, zero where a segment begins."""
        value = self._handle.get(name)[self._rows]
        fresh = torch.tensor([past == 0 for past in self._past], device=value.device)
        value[fresh] = 0
        return value

    def set(self, name: str, value: Tensor) -> None:
        """Replace a fixed entry of the wave's rows."""
        whole = self._handle.get(name)
        whole[self._rows] = value.to(whole.dtype)
        self._handle.set(name, whole)

    def memory(self, name: str, row: int, make: Callable[[], Tensor]) -> Tensor:
        """There is none: `Segments` refuses stacks that read one."""
        raise ValueError("a stack in segments reads no memory but its own")
