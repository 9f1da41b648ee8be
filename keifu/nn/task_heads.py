"""Task heads: masked words, and what a sequence, a token or a span is judged to be.

A stack's `heads` see the last hidden states of the ragged batch and the step with its row offsets:
`head(hidden (tokens, width), step)`. A head over tokens returns (tokens, count), one over rows
(rows, ...). Whoever wants a head's result asks for the tap "head.NAME".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from keifu.nn.activations import ACTIVATIONS
from keifu.nn.linear import Embedding, Linear
from keifu.nn.norms import Norm
from keifu.nn.part import Part, parameter
from keifu.nn.projection import Projecting, Projection, matrix
from keifu.nn.step import Step


@dataclass(frozen=True, kw_only=True)
class MaskedLM(Part):
    """Logits of masked words: norm(act(dense(x))) against the token table, plus a bias a word.

    Devlin et al. 2019, section 3.1, and the released code. ALBERT's dense layer goes down to the
    width of its narrower table.
    """

    width: int
    vocab: int
    norm: Norm
    act: str = "gelu"
    table_width: int | None = None
    tied: bool = True

    def build(self) -> nn.Module:
        """`dense`, `norm`, `bias` (vocab,), and `out` unless tied."""
        return _MaskedLM(self)


class _MaskedLM(Projecting):
    def __init__(self, spec: MaskedLM) -> None:
        super().__init__()
        self.spec = spec
        narrow = spec.table_width or spec.width
        self.dense = Linear(spec.width, narrow, bias=True)
        self.norm = spec.norm.build()
        self.out = None if spec.tied else Linear(narrow, spec.vocab)
        self.bias = parameter(spec.vocab, fill=0.0)

    def forward(self, x: Tensor, table: Embedding) -> Tensor:
        """x (tokens, width) -> logits (tokens, vocab) float32."""
        x = self._read(x)
        logits = table.project(x) if self.out is None else self.out(x)
        out: Tensor = logits.float() + self.bias.float()
        return out

    def projection(self, x: Tensor, table: Embedding) -> Projection | None:
        """The same, not made yet."""
        weight = matrix(self.out, table)
        if weight is None:
            return None
        return Projection(x=self._read(x), weight=weight, bias=self.bias, spread=self.spread)

    def _read(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(ACTIVATIONS[self.spec.act](self.dense(x)))
        return out


class Head(Part):
    """A part for a stack's `heads`."""

    rows: ClassVar[bool] = False
    """Whether it returns one result a row rather than one a token."""


@dataclass(frozen=True, kw_only=True)
class Scores(Head):
    """`count` scores of every token: its label, whether an answer begins or ends there."""

    width: int
    count: int = 1
    bias: bool = True

    def build(self) -> nn.Module:
        """A linear layer: (tokens, width) -> (tokens, count) float32."""
        return _Scores(self.width, self.count, bias=self.bias)


class _Scores(Linear):
    def forward(self, x: Tensor, step: Step | None = None) -> Tensor:
        return super().forward(x).float()


@dataclass(frozen=True, kw_only=True)
class Pooled(Head):
    """One vector a row: its token `at`, through act(dense(x)) where there is an `act`.

    The first token with a tanh is BERT's pooler (Devlin et al. 2019, section 3.2), the last one
    without anything what decoders judge by (GPT-1, section 3.2).
    """

    rows: ClassVar[bool] = True
    width: int
    act: str | None = "tanh"
    at: int = 0
    """0 is a row's first token, -1 its last."""

    def build(self) -> nn.Module:
        """`dense` where there is an act."""
        return _Pooled(self)


class _Pooled(nn.Module):
    def __init__(self, spec: Pooled) -> None:
        super().__init__()
        self.spec = spec
        self.dense = Linear(spec.width, spec.width, bias=True) if spec.act else None

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (tokens, width) -> (rows, width)."""
        at = self.spec.at
        edges = step.offsets[:-1] if at >= 0 else step.offsets[1:]
        x = x[torch.tensor(edges, device=x.device) + at]
        if self.dense is None or self.spec.act is None:
            return x
        return ACTIVATIONS[self.spec.act](self.dense(x))


@dataclass(frozen=True, kw_only=True)
class RowScores(Head):
    """`count` scores of every row, from its pooled vector: sentiment, entailment, one choice."""

    rows: ClassVar[bool] = True
    pool: Pooled
    count: int
    bias: bool = True

    def build(self) -> nn.Module:
        """`pool` and `out`."""
        return _RowScores(self)


class _RowScores(nn.Module):
    def __init__(self, spec: RowScores) -> None:
        super().__init__()
        self.spec = spec
        self.pool = spec.pool.build()
        self.out = Linear(spec.pool.width, spec.count, bias=spec.bias)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (tokens, width) -> (rows, count) float32."""
        out: Tensor = self.out(self.pool(x, step)).float()
        return out
