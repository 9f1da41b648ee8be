"""The stack: embed, blocks, norm, head. Sequence models differ in the parts they choose."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from keifu.nn.block import Block
from keifu.nn.linear import Weight
from keifu.nn.masks import Landmarks
from keifu.nn.norms import Norm
from keifu.nn.part import Initialised, Part
from keifu.nn.readout import AGAIN
from keifu.nn.split import Rank, Split, combined
from keifu.nn.state import Entry, Handle
from keifu.nn.step import Emit, Step, fresh_step, ignore
from keifu.nn.task_heads import Head


@dataclass(frozen=True, kw_only=True)
class Stack(Part):
    """A sequence of uses of blocks between an input and a head.

    Parameters belong to blocks, state belongs to uses: a block used twice (`uses`, ALBERT) is
    shared, counted and adapted once.
    """

    input: Part
    blocks: tuple[Block, ...]
    norm: Norm | None = None
    head: Part | None = None
    uses: tuple[int, ...] | None = None
    """Which block each use runs; None: each block once, in order."""
    shared: tuple[tuple[str, Part], ...] = ()
    """Parts that several blocks read, by name (T5's bias table)."""
    readout: Part | None = None
    """How the states of all uses become those the head reads; None: the last use's are."""
    heads: tuple[tuple[str, Head], ...] = ()
    """Further heads over the last hidden states, by name; asked for as the tap "head.name"."""

    def build(self) -> nn.Module:
        """`input`, `blocks`, `readout`, `norm`, `head`, `shared`, `heads`."""
        return StackModule(self)

    def order(self) -> tuple[int, ...]:
        """The block each use runs."""
        return tuple(range(len(self.blocks))) if self.uses is None else self.uses

    def entries(self) -> list[Mapping[str, Entry]]:
        """For each use, the state its block declares."""
        return [self.blocks[i].state() for i in self.order()]

    def split(self, rank: Rank) -> Split:
        """The blocks' shares; the input's and the head's by vocabulary where both are so split."""
        shares = {f"blocks.{i}": block.split(rank) for i, block in enumerate(self.blocks)}
        blocks = [share.part for share in shares.values()]
        shares["input"] = self.input.split(rank)
        if self.head is not None:
            shares["head"] = self.head.split(rank)
            # A head may read the input's table, so that one cannot be narrow without the other.
            if bool(shares["input"].cuts) != bool(shares["head"].cuts or shares["head"].joins):
                shares |= {"input": Split(part=self.input), "head": Split(part=self.head)}
        ends: dict[str, Any] = {n: shares[n].part for n in ("input", "head") if n in shares}
        narrow = replace(self, blocks=tuple(b for b in blocks if isinstance(b, Block)), **ends)
        return combined(narrow, shares)


def repeat(block: Block, times: int) -> tuple[Block, ...]:
    """The same description `times` times (parameters are not shared)."""
    return (block,) * times


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a stack returns. Shapes follow the input: (batch, time, ...) or (tokens, ...)."""

    logits: Tensor | None
    """(..., vocab) float32 where the stack has a head."""
    hidden: Tensor
    """(..., width) after the last norm."""
    taps: Mapping[str, Tensor] = field(default_factory=dict)
    """Named intermediates that were asked for; of a head over rows (batch, ...) or (rows, ...)."""


class StackModule(nn.Module):
    """The built stack. Call it with token ids (batch, time), or ragged with a `Step`."""

    def __init__(self, spec: Stack) -> None:
        super().__init__()
        self.spec = spec
        self.input = spec.input.build()
        self.blocks = nn.ModuleList(b.build() for b in spec.blocks)
        self.readout = spec.readout.build() if spec.readout else None
        self.norm = spec.norm.build() if spec.norm else None
        self.head = spec.head.build() if spec.head else None
        self.shared = nn.ModuleDict({name: part.build() for name, part in spec.shared})
        self.heads = nn.ModuleDict({name: part.build() for name, part in spec.heads})

    def forward(
        self,
        tokens: Tensor,
        *,
        attention_mask: Tensor | None = None,
        landmarks: Sequence[Landmarks] = (),
        segments: Tensor | None = None,
        kinds: Mapping[str, Tensor] | None = None,
        memories: Mapping[str, tuple[Tensor, ...]] | None = None,
        taps: Collection[str] = (),
        emit: Emit = ignore,
    ) -> Output:
        """Whole sequences from position 0.

        Args:
            tokens: (batch, time) ids, or (time,); (batch, time, ...) where the input takes more
                than an id a token (characters).
            attention_mask: (batch, time), 0 where there is padding on either side; padded places
                come back as zeros.
            landmarks: one a row, for masks that speak of them; positions count from its first
                token that is no padding.
            segments: (batch, time) segment ids, for inputs that take them.
            kinds: by name, further (batch, time) ids, for inputs that take them.
            memories: by name, one (length, width) tensor a row, for cross mixers.
            taps: names of intermediates to return: "input", "block.0", "head.choice", ...
        """
        grid = tokens if tokens.dim() > 1 else tokens[None]
        shape = grid.shape[:2]
        keep = None if attention_mask is None else attention_mask.reshape(shape).bool()
        lengths = [shape[1]] * shape[0] if keep is None else keep.sum(1).tolist()

        def ragged(x: Tensor) -> Tensor:
            x = x if x.dim() > 1 else x[None]
            return x.flatten(0, 1) if keep is None else x[keep]

        step = fresh_step(
            lengths,
            grid.device,
            segments=None if segments is None else ragged(segments),
            kinds={name: ragged(x) for name, x in (kinds or {}).items()},
            memories=memories,
            landmarks=landmarks,
            emit=emit,
        )
        out = self.run(ragged(grid), step, taps=taps)
        rows = {f"head.{name}" for name, head in self.spec.heads if head.rows}

        def shaped(x: Tensor) -> Tensor:
            if keep is not None:
                full = x.new_zeros(*shape, *x.shape[1:])
                full[keep] = x
            else:
                full = x.unflatten(0, tuple(shape))
            return by_row(full)

        def by_row(x: Tensor) -> Tensor:
            return x if tokens.dim() > 1 else x[0]

        return Output(
            logits=None if out.logits is None else shaped(out.logits),
            hidden=shaped(out.hidden),
            taps={n: by_row(x) if n in rows else shaped(x) for n, x in out.taps.items()},
        )

    def run(
        self,
        ids: Tensor,
        step: Step,
        states: Sequence[Handle] | None = None,
        *,
        select: Tensor | None = None,
        taps: Collection[str] = (),
    ) -> Output:
        """One ragged step: ids (tokens,) with what each use remembers.

        Args:
            select: indices of the tokens whose logits are wanted; None: all.
        """
        return self.through(self.input(ids, step), step, states, select=select, taps=taps)

    def through(
        self,
        x: Tensor,
        step: Step,
        states: Sequence[Handle] | None = None,
        *,
        select: Tensor | None = None,
        taps: Collection[str] = (),
    ) -> Output:
        """The same from the input's vectors x (tokens, width) on: blocks, norm, head."""
        if self.shared:
            step = _with_shared(step, dict(self.shared.items()))
        kept = {"input": x} if "input" in taps else {}
        passed = [x]
        for use, index in enumerate(self.spec.order()):
            x = self.blocks[index](x, step, None if states is None else states[use])
            if f"block.{use}" in taps:
                kept[f"block.{use}"] = x
            if self.readout is not None:
                passed.append(x)
        if self.readout is not None:
            x = self.readout(passed, step, partial(self._again, step=step))
        if self.norm is not None:
            x = self.norm(x)
        kept |= {
            f"head.{n}": head(x, step) for n, head in self.heads.items() if f"head.{n}" in taps
        }
        return Output(logits=self.logits(x, select), hidden=x, taps=kept)

    def _again(self, query: Tensor, memory: Tensor, *, step: Step) -> Tensor:
        """The last use once more: queries (tokens, width) over the memory's keys and values."""
        rows = memory.split(step.lengths())
        again = replace(step, memories={**step.memories, AGAIN: rows})
        out: Tensor = self.blocks[self.spec.order()[-1]](query, again, None)
        return out

    def logits(self, hidden: Tensor, select: Tensor | None = None) -> Tensor | None:
        """The head over the last hidden states (tokens, width), or over some of them."""
        if self.head is None:
            return None
        if select is not None:
            hidden = hidden[select]
        out: Tensor = self.head(hidden, self.input.table)
        return out

    def initialise(
        self, seed: int = 0, std: float = 0.02, residual: float | None = None
    ) -> StackModule:
        """Draw every matrix from N(0, std), zero the biases; the same seed, the same weights.

        residual: std of the matrices that write to the residual stream ("out", "down"); GPT-2's is
            std / sqrt(2 * layers). None: the same.
        """
        made = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            owner = self.get_submodule(name.rpartition(".")[0])
            if name.endswith("bias") and parameter.dim() == 1:
                nn.init.zeros_(parameter)
            elif isinstance(owner, Weight) or parameter.dim() > 1:
                writes = name.startswith("blocks.") and name.split(".")[-2] in ("out", "down")
                with torch.no_grad():
                    drawn = residual if writes and residual is not None else std
                    parameter.normal_(0.0, drawn, generator=made)
        for module in self.modules():
            if isinstance(module, Initialised):
                module.initialise(made)
        return self


def _with_shared(step: Step, shared: Mapping[str, nn.Module]) -> Step:
    """The step with the stack's shared parts in it (dataclasses.replace would reset the terms)."""
    return Step(
        positions=step.positions,
        offsets=step.offsets,
        limits=step.limits,
        landmarks=step.landmarks,
        coarse=step.coarse,
        segments=step.segments,
        kinds=step.kinds,
        memories=step.memories,
        compute=step.compute,
        shared=shared,
        emit=step.emit,
    )
