"""Segments: any stack as a Recurrent Memory Transformer, which carries memory tokens onward.

Source: Bulatov et al. 2022, arXiv 2207.06881, section 3: `H = [memory; segment; memory]` runs
through the stack, positions from 0; what comes out at the appended memory (the first output after
the last norm) is the memory of the next segment. A bidirectional stack has memory before the
segment alone, which is read and written there (arXiv 2304.11062, figure 2).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn

from keifu.core.errors import ConfigError
from keifu.nn.inputs import Tokens, TokensModule
from keifu.nn.masks import UNMARKED
from keifu.nn.part import parameter
from keifu.nn.segment import Piece, Wave, Within, cut
from keifu.nn.stack import Output, Stack, StackModule
from keifu.nn.state import Entry, Fixed, Handle, Memory, PerToken
from keifu.nn.step import Step


@dataclass(frozen=True, kw_only=True)
class Segments(Stack):
    """A stack that reads `segment` tokens at a time beside `memory` vectors, and no other past.

    From outside it is the same stack: tokens in, an output a token. State is constant, of one
    segment and the memory. The written memory never meets the head.
    """

    memory: int
    """Memory vectors."""
    segment: int
    """Tokens of a text that a segment holds."""
    appended: bool = True
    """Memory is appended, too, and written there (decoders); else where it is read (encoders)."""
    around: tuple[tuple[int, ...], ...] = ((), (), ())
    """Special tokens of each segment: before the memory, after it, at the end (CLS, SEP, SEP)."""
    tokens: tuple[int, ...] = ()
    """The first memory is the table's vectors of these ids; none: vectors of its own."""
    bptt: int | None = None
    """Segments that a gradient goes through while training, counted from a row's end; None: all."""

    @classmethod
    def of(cls, stack: Stack, **chosen: Any) -> Self:
        """A stack in segments: the arguments are this class's own fields."""
        return cls(**{f.name: getattr(stack, f.name) for f in fields(Stack)}, **chosen)

    def __post_init__(self) -> None:
        sizes = {"memory": self.memory, "segment": self.segment, "bptt": self.bptt}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} is not allowed: 1 or more")
        if not isinstance(self.input, Tokens):
            raise ConfigError(f"memory stands among token vectors, not {type(self.input).__name__}")
        if self.input.table_width not in (None, self.input.width):
            raise ConfigError(
                f"memory of width {self.input.width} does not fit a token table of width "
                f"{self.input.table_width}"
            )
        if self.tokens and len(self.tokens) != self.memory:
            raise ConfigError(f"{len(self.tokens)} tokens are no memory of {self.memory} vectors")
        reads = any(isinstance(e, Memory) for b in self.blocks for e in b.state().values())
        if reads:
            raise ConfigError("a stack that reads an encoder cannot run in segments")

    @property
    def lead(self) -> int:
        """Places before a segment's tokens."""
        return len(self.around[0]) + self.memory + len(self.around[1])

    @property
    def tail(self) -> int:
        """Places after them."""
        return len(self.around[2]) + (self.memory if self.appended else 0)

    @property
    def places(self) -> int:
        """Positions that a whole segment takes."""
        return self.lead + self.segment + self.tail

    def build(self) -> nn.Module:
        """The stack's modules, and `memory` (memory, width), the first segment's, if its own."""
        return SegmentsModule(self)

    def entries(self) -> list[Mapping[str, Entry]]:
        """For each use what it declares, tokens' as buffers of one segment; last, the memory."""
        own: Mapping[str, Entry] = {"memory": Fixed((self.memory, self.width))}
        if not self.appended:
            return [own]
        return [
            *(
                {
                    name: Fixed((self.places, *e.shape)) if isinstance(e, PerToken) else e
                    for name, e in declared.items()
                }
                for declared in super().entries()
            ),
            own,
        ]

    @property
    def width(self) -> int:
        """Of the memory: the stream's."""
        assert isinstance(self.input, Tokens)
        return self.input.width


class SegmentsModule(StackModule):
    """The built stack: `run` cuts each row at its segments' borders and puts memory in."""

    spec: Segments
    input: TokensModule

    def __init__(self, spec: Segments) -> None:
        super().__init__(spec)
        self.memory = None if spec.tokens else parameter(spec.memory, spec.width)

    def run(
        self,
        ids: Tensor,
        step: Step,
        states: Sequence[Handle] | None = None,
        *,
        select: Tensor | None = None,
        taps: Collection[str] = (),
    ) -> Output:
        """One ragged step, at any places of the rows' segments: ids (tokens,).

        The n-th pieces of all rows run together. An encoder's segments come whole, and its `taps`
        of rows are those of a row's last segment.
        """
        if any(marks != UNMARKED for marks in step.landmarks):
            raise ValueError("landmarks are places of a whole row: segments have none")
        spec, vectors = self.spec, self.input.table(ids)
        memories = self._held(step, states)
        outs: list[tuple[Wave, Output]] = []
        for pieces in cut(step, spec.segment, ends=not spec.appended):
            wave = Wave(pieces, spec.lead, spec.tail, step)
            outs.append((wave, self._wave(wave, vectors, memories, states, taps)))
        if states is not None:
            states[-1].set("memory", torch.stack([m.float() for m in memories]))
        order = torch.cat([wave.source for wave, _ in outs]).argsort()
        x = torch.cat([out.hidden[wave.at] for wave, out in outs])[order]
        found = {}
        for name in taps:
            if not any(name in out.taps for _, out in outs):
                continue
            if self._of_rows(name):
                last = {
                    p.row: v for w, o in outs for p, v in zip(w.pieces, o.taps[name], strict=True)
                }
                found[name] = torch.stack([last[row] for row in sorted(last)])
            else:
                found[name] = torch.cat([out.taps[name][wave.at] for wave, out in outs])[order]
        return Output(logits=self.logits(x, select), hidden=x, taps=found)

    def _held(self, step: Step, states: Sequence[Handle] | None) -> list[Tensor]:
        """Each row's memory: the learnt one where a row begins, else what its state holds."""
        first = self.memory
        if first is None:
            first = self.input.table(torch.tensor(self.spec.tokens, device=step.device))
        if states is None:
            return [first] * step.rows
        held = states[-1].get("memory")
        starts = [int(step.positions[at]) for at in step.offsets[:-1]]
        return [first if start == 0 else h for start, h in zip(starts, held, strict=True)]

    def _wave(
        self,
        wave: Wave,
        vectors: Tensor,
        memories: list[Tensor],
        states: Sequence[Handle] | None,
        taps: Collection[str],
    ) -> Output:
        """Run one piece of some rows, with memory around it; changes `memories`."""
        spec = self.spec
        if not (spec.appended or wave.whole):
            raise ValueError("a bidirectional segment runs in one step")
        before, between, end = (self._special(i, vectors.device) for i in range(3))
        parts: list[Tensor] = []
        for piece in wave.pieces:
            memory = memories[piece.row]
            if piece.opens:
                parts += [before, memory, between]
            parts.append(vectors[piece.start : piece.start + piece.count])
            if piece.closes:
                parts += [end, memory] if spec.appended else [end]
        inner = wave.step(spec.places)
        # Whole segments leave nothing behind but their memory.
        views = None
        if states is not None and not wave.whole:
            views = [Within(state, wave) for state in states[:-1]]
        nothing = torch.zeros(0, dtype=torch.long, device=vectors.device)
        x = self.input.placed(torch.cat(parts), inner)
        out = self.through(x, inner, views, select=nothing, taps=taps)
        for i, piece in enumerate(wave.pieces):
            if piece.closes:
                end_at, begin_at = wave.offsets[i + 1], wave.offsets[i] + len(spec.around[0])
                first = end_at - spec.memory if spec.appended else begin_at
                written = out.hidden[first : first + spec.memory]
                memories[piece.row] = written.detach() if self._cuts(piece) else written
        return out

    def _cuts(self, piece: Piece) -> bool:
        """Whether no gradient goes from this segment's memory back into it."""
        return self.spec.bptt is not None and piece.after % self.spec.bptt == 0

    def _special(self, which: int, device: torch.device) -> Tensor:
        ids = torch.tensor(self.spec.around[which], dtype=torch.long, device=device)
        out: Tensor = self.input.table(ids)
        return out

    def _of_rows(self, tap: str) -> bool:
        """Whether a tap has one value a row."""
        return any(tap == f"head.{name}" and head.rows for name, head in self.spec.heads)
