"""Position schemes as values: what they do to queries and keys, and what they add to scores."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from keifu.core.errors import KeifuError
from keifu.nn.attend import Bias
from keifu.nn.part import Part, parameter
from keifu.nn.step import Step, readable


class Position:
    """How attention learns where tokens are. The base does nothing (NoPE, or positions added)."""

    def rotate(self, q: Tensor, k: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Queries and keys (tokens, heads, width) with positions worked into them."""
        return q, k

    def met(self, k: Tensor, positions: Tensor) -> Tensor:
        """Stored keys (rows, m, groups, width) of positions (m,) as turned queries meet them."""
        return k

    def bias(self, step: Step) -> Bias | None:
        """What is added to the scores, or None."""
        return None

    def of_heads(self, first: int, count: int) -> Position:
        """The same for some of the heads; what is alike for all of them stays as it is."""
        changed = {
            name: value.of_heads(first, count)
            for name, value in vars(self).items()
            if isinstance(value, Position)
        }
        made = copy(self)
        for name, value in changed.items():
            object.__setattr__(made, name, value)
        return made


@dataclass(frozen=True)
class OfHeads(Position):
    """Some heads of a scheme that adds to each head's scores something else."""

    inner: Position
    first: int
    count: int

    def bias(self, step: Step) -> Bias | None:
        """Those heads' bias."""
        whole = self.inner.bias(step)
        if whole is None:
            return None

        def added(query: Tensor, key: Tensor) -> Tensor:
            return whole(query, key)[self.first : self.first + self.count]

        return added

    def of_heads(self, first: int, count: int) -> Position:
        """Some of them."""
        return replace(self, first=self.first + first, count=count)


@dataclass(frozen=True)
class NoPosition(Position):
    """Attention that is told nothing."""


def alibi_slopes(heads: int) -> Tensor:
    """Slopes of ALiBi (Press et al. 2022): 2^(-8i/n), filled up from 2n if n is no power of 2.

    Returns:
        (heads,) float32
    """
    near: int = 2 ** math.floor(math.log2(heads))
    base = 2.0 ** (-8.0 / near)
    slopes = [base ** (i + 1) for i in range(near)]
    if near != heads:
        extra = 2.0 ** (-4.0 / near)
        slopes += [extra ** (2 * i + 1) for i in range(heads - near)]
    return torch.tensor(slopes, dtype=torch.float32)


@dataclass(frozen=True)
class Alibi(Position):
    """Scores lose slope * distance; positions are never embedded (Press et al. 2022).

    `max_bias` 8 is the paper's; MPT makes it a setting and orders slopes by interleaving when the
    number of heads is no power of two.
    """

    heads: int
    max_bias: float = 8.0
    order: str = "bloom"

    def of_heads(self, first: int, count: int) -> Position:
        """Those heads' share of it."""
        return OfHeads(self, first, count)

    def slopes(self) -> Tensor:
        """(heads,) one slope a head."""
        if self.order == "bloom" and self.max_bias == 8.0:
            return alibi_slopes(self.heads)
        near: int = 2 ** math.ceil(math.log2(self.heads))
        slopes: Tensor = 2.0 ** (-self.max_bias * torch.arange(1, near + 1) / near)
        if near != self.heads:
            slopes = torch.cat([slopes[1::2], slopes[::2]])[: self.heads]
        return slopes

    def bias(self, step: Step) -> Bias:
        """-slope * (query - key)."""
        slopes: Tensor = step.term(self, lambda: self.slopes().to(step.device))

        def added(query: Tensor, key: Tensor) -> Tensor:
            ahead = key[..., None, :] - query[..., :, None]
            out: Tensor = slopes[:, None, None] * ahead[..., None, :, :]
            return out

        return added


@dataclass(frozen=True)
class CoarseAlibi(Position):
    """ALiBi as Falcon's code computes it: slope * key position, rounded to bfloat16, over `scale`.

    The rounding is no accident of precision but part of the trained function: beyond position 256
    keys share values. Heads as many as are not a power of two are ordered as in BLOOM.
    """

    heads: int
    scale: float
    """What the bias is multiplied by, as the scores are: 1 / sqrt(head width)."""

    def of_heads(self, first: int, count: int) -> Position:
        """Those heads' share of it."""
        return OfHeads(self, first, count)

    def bias(self, step: Step) -> Bias:
        """The same for every query: a softmax does not see what a whole row shares."""
        slopes: Tensor = step.term(
            self, lambda: alibi_slopes(self.heads).to(step.device, torch.bfloat16)
        )

        def added(query: Tensor, key: Tensor) -> Tensor:
            row = (slopes[:, None] * key.to(torch.bfloat16)[..., None, :]).float() * self.scale
            return row[..., None, :].expand(*row.shape[:-1], query.shape[-1], -1)

        return added


@dataclass(frozen=True)
class SharedBias(Position):
    """Scores take the bias of a part that the whole stack shares (T5)."""

    name: str = "bias"

    def of_heads(self, first: int, count: int) -> Position:
        """Those heads' share of it."""
        return OfHeads(self, first, count)

    def bias(self, step: Step) -> Bias:
        """The shared part's own bias function."""
        part = step.shared[self.name]
        if not isinstance(part, _BucketBias):
            raise TypeError(f"the stack's shared part {self.name!r} is no bias")
        return part.bias


@dataclass(frozen=True)
class LogN(Position):
    """Queries beyond `length` grow by log(position) / log(length) (Su 2021; Qwen), over `inner`."""

    inner: Position
    length: int

    def rotate(self, q: Tensor, k: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """The inner scheme, then the growth of queries."""
        q, k = self.inner.rotate(q, k, step)

        def grow() -> Tensor:
            at = (step.positions + 1).clamp(min=self.length).float()
            return (torch.log(at) / math.log(self.length))[:, None, None]

        return q * step.term(self, grow).to(q.dtype), k

    def bias(self, step: Step) -> Bias | None:
        """The inner scheme's."""
        return self.inner.bias(step)


@dataclass(frozen=True, kw_only=True)
class BucketBias(Part):
    """T5's relative position table: one learnt scalar a bucket and head (Raffel et al. 2020).

    Half of the buckets hold exact distances, the others grow logarithmically up to `distance`;
    with `bidirectional` each direction has half of them.
    """

    heads: int
    buckets: int = 32
    distance: int = 128
    bidirectional: bool = False

    def build(self) -> nn.Module:
        """`table` (buckets, heads)."""
        return _BucketBias(self)

    def bucket(self, query: Tensor, key: Tensor) -> Tensor:
        """Bucket ids (n, m) of query positions (n,) and key positions (m,)."""
        ahead = key[None, :] - query[:, None]
        buckets, first = self.buckets, torch.zeros_like(ahead)
        if self.bidirectional:
            buckets //= 2
            first = (ahead > 0).long() * buckets
            back = ahead.abs()
        else:
            back = (-ahead).clamp(min=0)
        exact = buckets // 2
        ratio = torch.log(back.clamp(min=1).float() / exact) / math.log(self.distance / exact)
        far = exact + (ratio * (buckets - exact)).long()
        return first + torch.where(back < exact, back, far.clamp(max=buckets - 1))


class _BucketBias(nn.Module):
    def __init__(self, spec: BucketBias) -> None:
        super().__init__()
        self.spec = spec
        self.table = parameter(spec.buckets, spec.heads, fill=0.0)

    def bias(self, query: Tensor, key: Tensor) -> Tensor:
        """(heads, n, m)"""
        return self.table[self.spec.bucket(query, key)].permute(2, 0, 1)


@dataclass(frozen=True, kw_only=True)
class Learned(Part):
    """A learnt vector a position, added to the input; `offset` shifts the index (OPT, BART: 2)."""

    length: int
    width: int
    offset: int = 0

    def build(self) -> nn.Module:
        """`weight` (length + offset, width)."""
        return _Learned(self)


class _Learned(nn.Module):
    def __init__(self, spec: Learned) -> None:
        super().__init__()
        self.spec = spec
        self.weight = parameter(spec.length + spec.offset, spec.width)

    def forward(self, positions: Tensor) -> Tensor:
        """positions (tokens,) -> (tokens, width). Raises KeifuError beyond the last one learnt."""
        length = self.spec.length
        if positions.numel() and readable(positions) and (most := int(positions.max())) >= length:
            raise KeifuError(
                f"a text of {most + 1} tokens is longer than the {length} positions that the model "
                "has learnt: shorten it"
            )
        return self.weight[positions + self.spec.offset]


@dataclass(frozen=True, kw_only=True)
class Sinusoid(Part):
    """sin and cos of pos / 10000^(2i/d) (Vaswani et al. 2017, section 3.5).

    `layout` "interleaved" is the paper's (sin, cos, sin, cos ...); "concat" is Marian's (all sines,
    then all cosines).
    """

    width: int
    layout: str = "interleaved"
    base: float = 10000.0

    def build(self) -> nn.Module:
        """No parameters."""
        return _Sinusoid(self)


class _Sinusoid(nn.Module):
    def __init__(self, spec: Sinusoid) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, positions: Tensor) -> Tensor:
        spec = self.spec
        power = torch.arange(0, spec.width, 2, dtype=torch.float64, device=positions.device)
        angle = positions.double()[:, None] / spec.base ** (power / spec.width)
        pair = (angle.sin(), angle.cos())
        table = torch.stack(pair, -1).flatten(-2) if spec.layout == "interleaved" else None
        return (torch.cat(pair, -1) if table is None else table).float()
