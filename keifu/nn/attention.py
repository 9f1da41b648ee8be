"""Attention as a token mixer: over the row itself, or over a memory."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from keifu.nn.attend import Bias, attend
from keifu.nn.linear import Linear
from keifu.nn.masks import Causal, Full, Landmarks, Mask
from keifu.nn.norms import Norm, PerHeadNorm
from keifu.nn.part import Part
from keifu.nn.positions import NoPosition, Position
from keifu.nn.split import Cut, Rank, Run, Split, Sum, beside, ins, outs
from keifu.nn.state import Entry, Handle, Memory, PerToken
from keifu.nn.step import Step


@dataclass(frozen=True, kw_only=True)
class Attention(Part):
    """Multi-head self-attention (Vaswani et al. 2017); fewer `kv_heads` share keys (MQA, GQA).

    A q or k norm as wide as a head works on each head, a wider one on the whole projection.
    """

    width: int
    heads: int
    kv_heads: int
    head_width: int
    position: Position = NoPosition()
    mask: Mask = Causal()
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    scale: float | None = None
    """On the scores; None is 1 / sqrt(head_width)."""
    softcap: float | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    clip: float | None = None
    """Queries, keys and values are clamped to this (MPT, OLMo)."""

    def build(self) -> nn.Module:
        """`qkv` with rows "q", "k", "v"; `out`; norms where there are any."""
        return _Attention(self)

    def state(self) -> Mapping[str, Entry]:
        """Keys and values, as far back as the mask reaches."""
        shape = (self.kv_heads, self.head_width)
        return {
            name: PerToken(shape, window=self.mask.back, sinks=self.mask.sinks, reading=reading)
            for name, reading in (("k", "keys"), ("v", "values"))
        }

    def split(self, rank: Rank) -> Split:
        """By heads; processes that are more than the kv heads have the one that theirs read.

        A norm over all heads together (OLMo 2) needs them in one place: then nothing is split.
        """
        if any(n is not None and n.width != self.head_width for n in (self.q_norm, self.k_norm)):
            return Split(part=self)
        q = rank.even(self.heads, "heads")
        few = self.kv_heads < rank.size and rank.size % self.kv_heads == 0
        at = rank.rank * self.kv_heads // rank.size
        kv = (at, at + 1) if few else rank.even(self.kv_heads, "kv heads")
        each, cuts, norms = self.head_width, dict[str, Cut](), dict[str, Any]()
        for name, norm, run, heads in (
            ("q_norm", self.q_norm, q, self.heads),
            ("k_norm", self.k_norm, kv, self.kv_heads),
        ):
            norms[name] = norm
            if isinstance(norm, PerHeadNorm):
                norms[name] = replace(norm, heads=run[1] - run[0])
                cuts[f"{name}.weight"] = Cut(0, heads, (run,))
        wide = (self.kv_heads * each, _wide(kv, each))
        qkv = beside((self.heads * each, _wide(q, each)), wide, wide)
        count = q[1] - q[0]
        return Split(
            part=replace(
                self,
                heads=count,
                kv_heads=kv[1] - kv[0],
                position=self.position.of_heads(q[0], count),
                **norms,
            ),
            cuts=cuts | outs("qkv", qkv) | ins("out", self.heads * each, _wide(q, each)),
            joins={"": Sum()},
            once=frozenset({"out.bias"}),
        )


def _wide(run: Run, each: int) -> Run:
    """A run of heads as one of channels."""
    return run[0] * each, run[1] * each


class _Attention(nn.Module):
    def __init__(self, spec: Attention) -> None:
        super().__init__()
        self.spec = spec
        q, kv = spec.heads * spec.head_width, spec.kv_heads * spec.head_width
        rows = {"q": q, "k": kv, "v": kv}
        self.qkv = Linear(spec.width, q + 2 * kv, bias=spec.qkv_bias, rows=rows)
        self.out = Linear(q, spec.width, bias=spec.out_bias)
        self.q_norm = spec.q_norm.build() if spec.q_norm else None
        self.k_norm = spec.k_norm.build() if spec.k_norm else None
        self.scale = spec.head_width**-0.5 if spec.scale is None else spec.scale

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        """x (tokens, width) -> (tokens, width)."""
        spec = self.spec
        qkv = self.qkv(x)
        if spec.clip is not None:
            qkv = qkv.clamp(-spec.clip, spec.clip)
        q, k, v = qkv.split(list(self.qkv.rows.values()), dim=-1)
        q = _normed(q, self.q_norm, spec.q_norm, spec.heads, spec.head_width)
        k = _normed(k, self.k_norm, spec.k_norm, spec.kv_heads, spec.head_width)
        v = v.unflatten(-1, (spec.kv_heads, spec.head_width))
        q, k = spec.position.rotate(q, k, step)
        out: Tensor = self.out(self._over_rows(q, k, v, step, state).to(x.dtype))
        return out

    def _over_rows(
        self, q: Tensor, k: Tensor, v: Tensor, step: Step, state: Handle | None
    ) -> Tensor:
        """Attend row by row over what the state holds, or at once over rows that are alike."""
        bias = self.spec.position.bias(step)
        if state is None:
            return self._over_lengths(q, k, v, step, bias)
        _check_streams(self.spec.mask, step)
        state.append("k", k)
        state.append("v", v)
        outs = []
        for view in state.views("k", "v"):
            at = slice(step.offsets[view.rows.start], step.offsets[view.rows.stop])
            keys, values = view.values
            queries, where = (
                t[at].unflatten(0, (len(view.rows), -1)) for t in (q.to(keys.dtype), step.positions)
            )
            where = where if view.positions.dim() == 2 else where[0]
            marks = step.marks(view.rows.start)
            out = self._attend(queries, keys, values, where, view.positions, bias, marks)
            outs.append(out.flatten(0, 1).flatten(1))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _over_lengths(
        self, q: Tensor, k: Tensor, v: Tensor, step: Step, bias: Bias | None
    ) -> Tensor:
        """Whole rows, those of one length and with the same landmarks together."""
        found: dict[int, Tensor] = {}
        for rows in alike([(n, step.marks(row)) for row, n in enumerate(step.lengths())]):
            where = step.positions[step.span(rows[0])]
            a, b, c = (stacked(t, step, rows) for t in (q, k, v))
            outs = self._attend(a, b, c, where, where, bias, step.marks(rows[0])).flatten(2)
            if len(rows) == step.rows:
                return outs.flatten(0, 1)
            found |= zip(rows, outs, strict=True)
        return torch.cat([found[row] for row in range(step.rows)])

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        query_positions: Tensor,
        key_positions: Tensor,
        bias: Bias | None,
        landmarks: Landmarks,
    ) -> Tensor:
        return attend(
            q,
            self.spec.position.met(k, key_positions),
            v,
            query_positions=query_positions,
            key_positions=key_positions,
            mask=self.spec.mask,
            scale=self.scale,
            bias=bias,
            softcap=self.spec.softcap,
            landmarks=landmarks,
        )


def alike(sizes: Sequence[Hashable]) -> list[list[int]]:
    """Rows by their size: indices of those that have one in common."""
    found: dict[Hashable, list[int]] = {}
    for row, size in enumerate(sizes):
        found.setdefault(size, []).append(row)
    return list(found.values())


def stacked(x: Tensor, step: Step, rows: Sequence[int]) -> Tensor:
    """Some rows of one length out of x (tokens, ...): (rows, length, ...)."""
    if len(rows) == step.rows:
        whole: Tensor = x.unflatten(0, (len(rows), -1))
        return whole
    return torch.stack([x[step.span(row)] for row in rows])


def _check_streams(mask: Mask, step: Step) -> None:
    """A state holds the past alone, so what a query sees after itself must be in its step."""
    if not mask.ahead:
        return
    for row, limit in enumerate(step.limits):
        last = int(step.positions[step.span(row)][-1])
        reach = mask.reach(last, limit, step.marks(row))
        if reach > last:
            raise ValueError(
                f"a state cannot hold what comes after a step: tokens up to {last} run, and see "
                f"those up to {reach}"
            )


def _normed(
    x: Tensor, norm: nn.Module | None, spec: Norm | None, heads: int, head_width: int
) -> Tensor:
    """(tokens, heads * width) -> (tokens, heads, width), normalised by head or as a whole."""
    if norm is None or spec is None:
        plain: Tensor = x.unflatten(-1, (heads, head_width))
        return plain
    if spec.width == head_width:
        out: Tensor = norm(x.unflatten(-1, (heads, head_width)))
        return out
    whole: Tensor = norm(x).unflatten(-1, (heads, head_width))
    return whole


@dataclass(frozen=True, kw_only=True)
class CrossAttention(Part):
    """Queries from the row, keys and values from a memory of it (an encoder's output)."""

    width: int
    heads: int
    head_width: int
    memory: str = "encoder"
    memory_width: int | None = None
    scale: float | None = None
    bias: bool = False

    def build(self) -> nn.Module:
        """`q`, `kv` with rows "k", "v", and `out`."""
        return CrossAttentionModule(self)

    def state(self) -> Mapping[str, Entry]:
        """Keys and values of the memory, computed once."""
        return {"kv": Memory((2, self.heads, self.head_width), self.memory)}

    def split(self, rank: Rank) -> Split:
        """By heads."""
        start, stop = rank.even(self.heads, "heads")
        total, run = self.heads * self.head_width, _wide((start, stop), self.head_width)
        cuts = outs("q", Cut(0, total, (run,))) | outs("kv", beside((total, run), (total, run)))
        return Split(
            part=replace(self, heads=stop - start),
            cuts=cuts | ins("out", total, run),
            joins={"": Sum()},
            once=frozenset({"out.bias"}),
        )


class CrossAttentionModule(nn.Module):
    """The built cross-attention."""

    def __init__(self, spec: CrossAttention) -> None:
        super().__init__()
        self.spec = spec
        inner = spec.heads * spec.head_width
        rows = {"k": inner, "v": inner}
        source = spec.memory_width or spec.width
        self.q = Linear(spec.width, inner, bias=spec.bias)
        self.kv = Linear(source, 2 * inner, bias=spec.bias, rows=rows)
        self.out = Linear(inner, spec.width, bias=spec.bias)
        self.scale = spec.head_width**-0.5 if spec.scale is None else spec.scale

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        """x (tokens, width) -> (tokens, width)."""
        q = self.q(x).unflatten(-1, (self.spec.heads, self.spec.head_width))
        y: Tensor = self.out(self.read(q, step, state).flatten(1).to(x.dtype))
        return y

    def read(self, q: Tensor, step: Step, state: Handle | None) -> Tensor:
        """What queries (tokens, heads, head_width) get of the memory, shaped as they are."""
        held = self._keys(step, state)
        found: dict[int, Tensor] = {}
        for rows in alike([(n, kv.shape[0]) for n, kv in zip(step.lengths(), held, strict=True)]):
            k, v = torch.stack([held[row] for row in rows]).unbind(2)
            outs = attend(
                stacked(q, step, rows).to(k.dtype),
                k,
                v,
                query_positions=step.positions[step.span(rows[0])],
                key_positions=torch.arange(k.shape[1], device=q.device),
                mask=Full(),
                scale=self.scale,
            )
            found |= zip(rows, outs, strict=True)
        return torch.cat([found[row] for row in range(step.rows)])

    def _keys(self, step: Step, state: Handle | None) -> list[Tensor]:
        """Keys and values of each row's memory: (length, 2, heads, head_width)."""
        shape = (2, self.spec.heads, self.spec.head_width)
        if state is None:
            rows = step.memories[self.spec.memory]
            whole: Tensor = self.kv(torch.cat(rows)).unflatten(-1, shape)
            return list(whole.split([row.shape[0] for row in rows]))

        def made(row: int) -> Tensor:
            out: Tensor = self.kv(step.memories[self.spec.memory][row]).unflatten(-1, shape)
            return out

        return [state.memory("kv", row, partial(made, row)) for row in range(step.rows)]
