"""Heads: how the last hidden states become logits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from keifu.nn.linear import Embedding, Linear
from keifu.nn.part import Part, parameter
from keifu.nn.projection import Projecting, Projection, matrix
from keifu.nn.split import Cut, Gather, Rank, Split, outs


@dataclass(frozen=True, kw_only=True)
class LMHead(Part):
    """Next-token logits, from a matrix of its own or, `tied`, from the input's table."""

    width: int
    vocab: int
    tied: bool = False
    bias: bool = False
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap) (Gemma 2)."""
    scale: float = 1.0
    """Logits are multiplied by this (Granite, Cohere)."""
    table_width: int | None = None
    """A projection down before a narrower table (OPT-350M)."""
    shift: bool = False
    """A constant (1, vocab) is added to the logits; no parameter, zero at first (BART, Marian)."""

    def build(self) -> nn.Module:
        """`project` where the table is narrower; `out` unless tied; `shift` as a buffer."""
        return _LMHead(self)

    def split(self, rank: Rank) -> Split:
        """The logits by vocabulary."""
        run = rank.chunk(self.vocab, "tokens of vocabulary")
        cut = Cut(0, self.vocab, (run,))
        return Split(
            part=replace(self, vocab=run[1] - run[0]),
            cuts={**outs("out", cut), "bias": cut, "shift": Cut(1, self.vocab, (run,))},
            joins={"": Gather(self.vocab)},
        )


class _LMHead(Projecting):
    shift: Tensor | None

    def __init__(self, spec: LMHead) -> None:
        super().__init__()
        self.spec = spec
        narrow = spec.table_width if spec.table_width not in (None, spec.width) else None
        self.project = Linear(spec.width, narrow) if narrow else None
        self.out = None if spec.tied else Linear(narrow or spec.width, spec.vocab, bias=spec.bias)
        self.bias = parameter(spec.vocab) if spec.tied and spec.bias else None
        self.register_buffer("shift", torch.zeros(1, spec.vocab) if spec.shift else None)

    def forward(self, x: Tensor, table: Embedding) -> Tensor:
        """x (tokens, width) -> logits (tokens, vocab) float32."""
        if self.project is not None:
            x = self.project(x)
        logits = table.project(x) if self.out is None else self.out(x)
        if self.bias is not None:
            logits = logits + self.bias.to(logits.dtype)
        logits = logits.float()
        if self.spec.scale != 1.0:
            logits = logits * self.spec.scale
        if self.spec.softcap is not None:
            logits = self.spec.softcap * torch.tanh(logits / self.spec.softcap)
        return logits if self.shift is None else logits + self.shift

    def projection(self, x: Tensor, table: Embedding) -> Projection | None:
        """The same, not made yet; a head's own bias and a tied one's are added alike."""
        weight = matrix(self.out, table)
        if weight is None:
            return None
        return Projection(
            x=x if self.project is None else self.project(x),
            weight=weight,
            bias=self.bias if self.out is None else self.out.bias,
            scale=self.spec.scale,
            softcap=self.spec.softcap,
            shift=self.shift,
            spread=self.spread,
        )
