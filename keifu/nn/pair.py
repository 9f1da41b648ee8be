"""The pair: an encoder whose last hidden states are a memory that a decoder reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from keifu.core.errors import ConfigError, KeifuError
from keifu.nn.chunks import Chunk, Overlap, passes
from keifu.nn.linear import Linear
from keifu.nn.masks import UNMARKED, Gist, Landmarks
from keifu.nn.part import Part
from keifu.nn.split import Rank, Split, combined
from keifu.nn.stack import Output, Stack, StackModule
from keifu.nn.state import Entry
from keifu.nn.step import Emit, Step, fresh_step, ignore


@dataclass(frozen=True, kw_only=True)
class Bridge(Part):
    """W h + b: an encoder's hidden states at a decoder's width."""

    inputs: int
    outputs: int

    def build(self) -> nn.Module:
        """A linear layer, (length, inputs) -> (length, outputs)."""
        return Linear(self.inputs, self.outputs, bias=True)


@dataclass(frozen=True, kw_only=True)
class Pair(Part):
    """An encoder-decoder (Sutskever et al. 2014; Vaswani et al. 2017): two stacks and a memory.

    The decoder's cross mixers name the memory; generation runs the decoder alone, as any stack.
    """

    encoder: Stack
    decoder: Stack
    memory: str = "encoder"
    tied: bool = False
    """The decoder reads the encoder's token table (T5, BART)."""
    last: bool = False
    """The memory is the source's last place alone: a summary of it (Sutskever et al. 2014)."""
    bridge: Bridge | None = None
    """What the memory goes through first, where the widths differ."""
    chunks: Overlap | None = None
    """How the encoder reads a source that is longer than it; None: whole, whatever its length."""
    since: Gist | None = None
    """The memory begins where this says: the decoder sees nothing before the gist tokens."""

    def build(self) -> nn.Module:
        """`encoder`, `decoder`, and `bridge` where there is one."""
        return PairModule(self)

    def entries(self) -> list[Mapping[str, Entry]]:
        """For each use of the decoder, the state its block declares."""
        return self.decoder.entries()

    def split(self, rank: Rank) -> Split:
        """Both stacks' shares.

        Raises:
            ConfigError: also where they share a table that only one of them can split.
        """
        shares = {"encoder": self.encoder.split(rank), "decoder": self.decoder.split(rank)}
        encoder, decoder = (share.part for share in shares.values())
        assert isinstance(encoder, Stack)
        assert isinstance(decoder, Stack)
        if self.tied and encoder.input != decoder.input:
            raise ConfigError("the table that both stacks share splits in one of them alone")
        return combined(replace(self, encoder=encoder, decoder=decoder), shares)


class PairModule(nn.Module):
    """The built pair."""

    def __init__(self, spec: Pair) -> None:
        super().__init__()
        self.spec = spec
        self.encoder, self.decoder = StackModule(spec.encoder), StackModule(spec.decoder)
        self.bridge = spec.bridge.build() if spec.bridge else None
        if spec.tied:
            self.decoder.input.table = self.encoder.input.table

    def encode(
        self,
        source: Tensor,
        *,
        attention_mask: Tensor | None = None,
        landmarks: Sequence[Landmarks] = (),
        emit: Emit = ignore,
    ) -> tuple[Tensor, ...]:
        """The memory of each row, (length, width): source (batch, time), padding left out."""
        keep = torch.ones(source.shape[:2], dtype=torch.bool, device=source.device)
        if attention_mask is not None:
            keep = attention_mask.bool()
        lengths = keep.sum(1).tolist()
        step = fresh_step(lengths, source.device, landmarks=landmarks, emit=emit)
        return self._memories(source[keep], step)

    def read(self, ids: Tensor, step: Step) -> tuple[Tensor, ...]:
        """The same of ragged sources: ids (tokens,) of the step's rows."""
        return self._memories(ids, step)

    def _memories(self, ids: Tensor, step: Step) -> tuple[Tensor, ...]:
        rows = self.states(ids, step)
        shown = [self.places(len(row), step.marks(i)) for i, row in enumerate(rows)]
        return tuple(self.bridged(row[-n:]) for row, n in zip(rows, shown, strict=True))

    def bridged(self, row: Tensor) -> Tensor:
        """Hidden states (length, encoder width) at the decoder's width, where the widths differ."""
        out: Tensor = row if self.bridge is None else self.bridge(row)
        return out

    def states(self, ids: Tensor, step: Step) -> tuple[Tensor, ...]:
        """The encoder's last hidden states (length, width) of each row, read whole or in chunks."""
        lengths, how = step.lengths(), self.spec.chunks
        if how is None:
            hidden: Tensor = self.encoder.run(ids, step).hidden
            rows: tuple[Tensor, ...] = hidden.split(lengths)
            return rows
        pieces: list[list[Tensor]] = [[] for _ in lengths]
        for chunks in passes([c for row, n in enumerate(lengths) for c in how.of(n, row)]):
            for chunk, kept in zip(chunks, self.read_chunks(ids, chunks, step), strict=True):
                pieces[chunk.row].append(kept)
        return tuple(map(torch.cat, pieces))

    def read_chunks(self, ids: Tensor, chunks: Sequence[Chunk], step: Step) -> list[Tensor]:
        """What one pass over some chunks of the step's rows keeps of each."""
        lengths = [chunk.end - chunk.start for chunk in chunks]
        given = [ids[step.span(chunk.row)][chunk.start : chunk.end] for chunk in chunks]
        fresh = replace(fresh_step(lengths, ids.device, emit=step.emit), compute=step.compute)
        hidden = self.encoder.run(torch.cat(given), fresh).hidden.split(lengths)
        return [
            row[chunk.first - chunk.start : chunk.last - chunk.start]
            for row, chunk in zip(hidden, chunks, strict=True)
        ]

    def places(self, source: int, landmarks: Landmarks = UNMARKED) -> int:
        """How long the memory of a source of this length is.

        Raises:
            KeifuError: there would be none.
        """
        begins = 0 if self.spec.since is None else self.spec.since.since(landmarks)
        if begins >= source > 0:
            raise KeifuError(
                f"the decoder reads a source from {begins} on, which is all of its {source} tokens"
            )
        return 1 if self.spec.last else source - begins

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        *,
        source_mask: Tensor | None = None,
        landmarks: Sequence[Landmarks] = (),
        target_mask: Tensor | None = None,
        taps: Collection[str] = (),
        emit: Emit = ignore,
    ) -> Output:
        """Whole sequences: source (batch, time), target (batch, time'), masks 0 at padding.

        Landmarks are the sources'. Taps are the decoder's; the target is what the decoder reads,
        already shifted.
        """
        memory = self.encode(source, attention_mask=source_mask, landmarks=landmarks, emit=emit)
        return self.decode(target, memory, target_mask=target_mask, taps=taps, emit=emit)

    def decode(
        self,
        target: Tensor,
        memory: Sequence[Tensor],
        *,
        target_mask: Tensor | None = None,
        taps: Collection[str] = (),
        emit: Emit = ignore,
    ) -> Output:
        """The decoder over targets (batch, time), given the memory of each row."""
        out: Output = self.decoder(
            target,
            attention_mask=target_mask,
            memories={self.spec.memory: tuple(memory)},
            taps=taps,
            emit=emit,
        )
        return out

    def initialise(self, seed: int = 0, std: float = 0.02) -> PairModule:
        """Both stacks' own; the same seed, the same weights."""
        self.encoder.initialise(seed, std)
        self.decoder.initialise(seed + 1, std)
        if isinstance(self.bridge, Linear):
            made = torch.Generator().manual_seed(seed + 2)
            for parameter in self.bridge.parameters():
                drawn = parameter.detach().normal_(0.0, std, generator=made)
                if drawn.dim() == 1:
                    drawn.zero_()
        return self
