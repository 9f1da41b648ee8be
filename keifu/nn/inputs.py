"""Inputs: how token ids become the first residual stream."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from keifu.nn.linear import Embedding, Linear
from keifu.nn.norms import Norm
from keifu.nn.part import Part
from keifu.nn.positions import Learned, Sinusoid
from keifu.nn.split import Cut, Rank, Rows, Split
from keifu.nn.step import Step


@dataclass(frozen=True, kw_only=True)
class Tokens(Part):
    """Token vectors, times `scale`, plus positions and segments, then a norm, then a projection."""

    vocab: int
    width: int
    scale: float = 1.0
    """Gemma multiplies by sqrt(width)."""
    positions: Learned | Sinusoid | None = None
    segments: int = 0
    """Kinds of segments (token types); 0: none."""
    kinds: tuple[tuple[str, int], ...] = ()
    """Further tables by name, each with how many ids it has (ERNIE 2.0's task types)."""
    norm: Norm | None = None
    """After the sum (BERT, BLOOM)."""
    table_width: int | None = None
    """Narrower table and a projection up (OPT-350M, ALBERT); None: as wide as the stream."""
    project_bias: bool = False
    """The projection is affine and there whatever the widths (ALBERT)."""

    def build(self) -> nn.Module:
        """`table`, and `positions`, `segments`, `kinds`, `norm`, `project` where there are any."""
        return TokensModule(self)

    def split(self, rank: Rank) -> Split:
        """The table by vocabulary; what is added to it is everybody's."""
        run = rank.chunk(self.vocab, "tokens of vocabulary")
        return Split(
            part=replace(self, vocab=run[1] - run[0]),
            cuts={"table.weight": Cut(0, self.vocab, (run,))},
            joins={"table": Rows(run)},
        )


class TokensModule(nn.Module):
    """The built input."""

    def __init__(self, spec: Tokens) -> None:
        super().__init__()
        self.spec = spec
        width = spec.table_width or spec.width
        self.table = Embedding(spec.vocab, width)
        self.positions = spec.positions.build() if spec.positions else None
        self.segments = Embedding(spec.segments, width) if spec.segments else None
        self.kinds = nn.ModuleDict({name: Embedding(n, width) for name, n in spec.kinds})
        self.norm = spec.norm.build() if spec.norm else None
        projected = width != spec.width or spec.project_bias
        self.project = Linear(width, spec.width, bias=spec.project_bias) if projected else None

    def forward(self, ids: Tensor, step: Step) -> Tensor:
        """ids (tokens,) -> (tokens, width)."""
        return self.placed(self.table(ids), step)

    def placed(self, x: Tensor, step: Step) -> Tensor:
        """The same from vectors (tokens, table width) on, whether of the table or not."""
        if self.spec.scale != 1.0:
            x = x * self.spec.scale
        positions = self.spec.positions
        project_first = positions is not None and positions.width != self.table.inputs
        if project_first and self.project is not None:
            x = self.project(x)
        if self.positions is not None:
            x = x + self.positions(step.positions).to(x.dtype)
        first = torch.zeros_like(step.positions)
        if self.segments is not None:
            x = x + self.segments(first if step.segments is None else step.segments)
        for name, table in self.kinds.items():
            x = x + table(step.kinds.get(name, first))
        if self.norm is not None:
            x = self.norm(x)
        if self.project is not None and not project_first:
            x = self.project(x)
        out: Tensor = x
        return out
