"""Sentence vectors: how a row's token vectors become one, and what is done to it afterwards.

The modes are those of sentence-transformers (Reimers & Gurevych 2019, arXiv 1908.10084, section 3,
and the library's `Pooling`), over ragged rows: no padding is masked out because there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keifu.core.errors import unknown
from keifu.nn.activations import ACTIVATIONS
from keifu.nn.linear import Linear
from keifu.nn.norms import LayerNorm
from keifu.nn.part import Part
from keifu.nn.step import Step
from keifu.nn.task_heads import Head

MODES = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken")
"""Each row's first token, its largest value a column, its mean, its sum over the square root of its
length, its mean weighted by 1, 2, 3 ..., its last token."""


@dataclass(frozen=True, kw_only=True)
class Pool(Part):
    """One vector a row: the results of some modes, one after another."""

    width: int
    modes: tuple[str, ...] = ("mean",)
    prompt: bool = True
    """Whether the tokens of an instruction before the text count (the rows' prefixes)."""

    def __post_init__(self) -> None:
        for mode in self.modes:
            if mode not in MODES:
                raise unknown("pooling", mode, MODES)

    @property
    def outputs(self) -> int:
        """Columns of the vectors."""
        return self.width * len(self.modes)

    def build(self) -> nn.Module:
        """No parameters."""
        return _Pool(self)


class _Pool(nn.Module):
    def __init__(self, spec: Pool) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (tokens, width) -> (rows, width * modes) float32."""
        starts, ends = [], []
        for row in range(step.rows):
            at, skip = step.span(row), 0 if self.spec.prompt else step.marks(row).prefix
            starts.append(min(at.start + skip, at.stop - 1))  # a text of nothing keeps its last
            ends.append(at.stop)
        first = torch.tensor(starts, device=x.device)
        last = torch.tensor(ends, device=x.device)
        x = x.float()
        return torch.cat([self._mode(m, x, first, last, step) for m in self.spec.modes], dim=-1)

    def _mode(self, mode: str, x: Tensor, first: Tensor, last: Tensor, step: Step) -> Tensor:
        """first, last: (rows,) the tokens [first, last) of each row that count."""
        if mode == "cls":
            return x[first]
        if mode == "lasttoken":
            return x[last - 1]
        count = last - first
        row = torch.repeat_interleave(count)
        before = torch.cumsum(count, 0) - count
        within = torch.arange(len(row), device=x.device) - before[row]
        if len(row) < len(x):
            x = x[within + first[row]]
        out = x.new_zeros(len(count), x.shape[1])
        if mode == "max":
            index = row[:, None].expand_as(x)
            return out.scatter_reduce(0, index, x, reduce="amax", include_self=False)
        if mode == "weightedmean":
            starts = torch.tensor(step.offsets[:-1], device=x.device)
            weight = (within + (first - starts)[row] + 1).float()[:, None]
            total = out.new_zeros(len(count), 1).index_add(0, row, weight)
            return out.index_add(0, row, x * weight) / total
        length = count[:, None].float()
        return out.index_add(0, row, x) / (length if mode == "mean" else length.sqrt())


@dataclass(frozen=True, kw_only=True)
class Unit(Part):
    """x / |x|, so that a product of two vectors is their cosine; zero stays zero."""

    def build(self) -> nn.Module:
        """No parameters."""
        return _Unit()


class _Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """x (rows, width)."""
        return F.normalize(x.float(), dim=-1)


@dataclass(frozen=True, kw_only=True)
class Dense(Part):
    """act(x W^T + b), plus x (projected where the widths differ) with `residual`."""

    inputs: int
    outputs: int
    bias: bool = True
    act: str = "tanh"
    residual: bool = False

    def build(self) -> nn.Module:
        """`linear`, and `residual` where the widths differ."""
        return _Dense(self)


class _Dense(nn.Module):
    def __init__(self, spec: Dense) -> None:
        super().__init__()
        self.spec = spec
        self.linear = Linear(spec.inputs, spec.outputs, bias=spec.bias)
        other = spec.residual and spec.inputs != spec.outputs
        self.residual = Linear(spec.inputs, spec.outputs) if other else None

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, inputs) -> (rows, outputs)."""
        y = ACTIVATIONS[self.spec.act](self.linear(x))
        if self.spec.residual:
            y = y + (x if self.residual is None else self.residual(x))
        return y


After = Unit | Dense | LayerNorm


@dataclass(frozen=True, kw_only=True)
class Sentence(Head):
    """A row's vector: pooled, then through each of `after` in order."""

    rows: ClassVar[bool] = True
    pool: Pool
    after: tuple[After, ...] = ()

    @property
    def width(self) -> int:
        """Columns of the vectors."""
        return next(
            (p.outputs for p in self.after[::-1] if isinstance(p, Dense)), self.pool.outputs
        )

    def build(self) -> nn.Module:
        """`pool` and `after`."""
        return _Sentence(self)


class _Sentence(nn.Module):
    def __init__(self, spec: Sentence) -> None:
        super().__init__()
        self.spec = spec
        self.pool = spec.pool.build()
        self.after = nn.ModuleList(part.build() for part in spec.after)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (tokens, width) -> (rows, width) float32."""
        x = self.pool(x, step)
        for module in self.after:
            x = module(x)
        return x.float()
