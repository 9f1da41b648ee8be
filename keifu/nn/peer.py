"""PEER: single-neuron experts, up to a million and more, found by product keys.

He 2024, "Mixture of A Million Experts", arXiv 2407.04153, section 2. Emits "load", "usage" and
"unevenness" (section 4.4) where a step is listened to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from keifu.core.errors import ConfigError, KeifuError, unknown
from keifu.nn.activations import ACTIVATIONS
from keifu.nn.linear import Embedding, Linear
from keifu.nn.norms import BatchNorm
from keifu.nn.part import Part, parameter
from keifu.nn.product_keys import top_pairs
from keifu.nn.state import Handle
from keifu.nn.step import Step, ignore, readable

Gate = Literal["softmax", "sigmoid"]
GATES = get_args(Gate)
_GATHERED = 1 << 22
"""Most numbers of the tables that are copied at a time (16 MiB in float32)."""


@dataclass(frozen=True, kw_only=True)
class PEER(Part):
    """y = sum over heads and their `top` experts of g_i act(u_i . x) v_i (equations 1 and 2).

    A head scores expert (i, j) by its query q(x): half . c_i + half . c'_j, and weighs the best by
    a softmax over them. All heads share the keys and the experts; only their queries differ.

    Memory of a training step beyond the tables and their gradients: 2 * heads * sqrt(experts)
    scores and 3 * heads * top numbers a token; the experts' rows are never held for all tokens.
    """

    width: int
    experts: int
    """A square."""
    heads: int = 8
    top: int = 16
    """Experts a head."""
    key_width: int = 256
    """Of a query; the halves of the keys have half of it."""
    act: str = "gelu"
    gate: Gate = "softmax"
    """Sigmoid: an expert's weight does not depend on the others'."""
    query_norm: BatchNorm | None = None
    """Over each number of all heads' queries; evens out how often experts are used."""
    sparse: bool = False
    """The tables' gradients hold the rows in use alone (SGD and SparseAdam take such)."""

    @property
    def keys(self) -> int:
        """Half-keys of each side."""
        return math.isqrt(self.experts)

    @property
    def active(self) -> int:
        """Experts that each token meets (some more than once): the hidden width of an MLP."""
        return self.heads * self.top

    def __post_init__(self) -> None:
        if self.experts < 1 or self.keys**2 != self.experts:
            near = max(1, round(max(self.experts, 0) ** 0.5)) ** 2
            raise ConfigError(f"{self.experts} experts are no square: take {near}")
        if not 1 <= self.top <= self.experts:
            raise ConfigError(
                f"top={self.top} of {self.experts} experts is not allowed: 1 to {self.experts}"
            )
        if self.key_width < 2 or self.key_width % 2:
            raise ConfigError(f"key_width={self.key_width} has no halves: take an even number")
        if self.gate not in GATES:
            raise unknown("PEER gate", self.gate, GATES)
        if self.query_norm is not None and self.query_norm.width != self.heads * self.key_width:
            raise ConfigError(
                f"the query norm's width {self.query_norm.width} is not allowed: "
                f"heads * key_width = {self.heads * self.key_width}"
            )

    def build(self) -> nn.Module:
        """`query`, `query_norm`, `sub_keys` (2, keys, key_width / 2), the tables `up`, `down`.

        As in an MLP `up` holds what x meets (u) and `down` what is written (v), a row an expert.
        """
        return _PEER(self)


class _PEER(nn.Module):
    def __init__(self, spec: PEER) -> None:
        super().__init__()
        self.spec = spec
        self.query = Linear(spec.width, spec.heads * spec.key_width)
        self.query_norm = spec.query_norm.build() if spec.query_norm else None
        self.sub_keys = parameter(2, spec.keys, spec.key_width // 2)
        self.up = Experts(spec.experts, spec.width, spec.sparse)
        self.down = Experts(spec.experts, spec.width, spec.sparse)

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        """x (tokens, width) -> (tokens, width)."""
        best, chosen = self.retrieve(x)
        gates = best.softmax(-1) if self.spec.gate == "softmax" else best.sigmoid()
        gates, chosen = gates.flatten(1), chosen.flatten(1)
        if step.emit is not ignore:
            self._report(gates.detach(), chosen, step)
        hidden = ACTIVATIONS[self.spec.act](self.up.met(x, chosen))
        return self.down.written(hidden * gates, chosen).to(x.dtype)

    def retrieve(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (tokens, width) -> scores and numbers of the experts, (tokens, heads, top) each.

        Scores are in float32 or wider, as of other routers.

        Raises:
            KeifuError: a score is NaN or infinite.
        """
        wide = x if x.element_size() > 4 else x.float()
        query = self.query(x).to(wide.dtype)
        if self.query_norm is not None:
            query = self.query_norm(query)
        halves = query.unflatten(-1, (self.spec.heads, 2, -1))
        first, second = torch.einsum("thpd,pnd->pthn", halves, self.sub_keys.to(wide.dtype))
        best, chosen = top_pairs(first, second, self.spec.top)
        if readable(x) and not bool(torch.isfinite(best).all()):
            raise KeifuError(
                "the scores of PEER's keys are not finite: the weights are damaged or training "
                "has diverged (lower the learning rate, or resume from an earlier checkpoint)"
            )
        return best, chosen

    def _report(self, gates: Tensor, chosen: Tensor, step: Step) -> None:
        """What each expert was given in this step (experts,), and the two numbers of section 4.4.

        To have them of a whole set of texts, add the loads of its steps up.
        """
        load = gates.new_zeros(self.spec.experts)
        load.index_add_(0, chosen.flatten(), gates.flatten())
        step.emit("load", load)
        step.emit("usage", usage(load))
        step.emit("unevenness", unevenness(load))


def usage(load: Tensor) -> Tensor:
    """The share of experts that were used at all; load (experts,) -> ()."""
    return (load > 0).to(load.dtype).mean()


def unevenness(load: Tensor) -> Tensor:
    """KL(z || uniform) = log N + sum z log z, in nats, of the loads z that sum to one.

    0 where all experts bear the same, log N where one bears all. load (experts,) -> ().
    """
    share = load / load.sum()
    return math.log(load.shape[0]) + torch.xlogy(share, share).sum()


class Experts(Embedding):
    """One vector an expert, of which each token meets a few: only those rows are read."""

    def __init__(self, count: int, width: int, sparse: bool) -> None:
        super().__init__(count, width)
        self.sparse = sparse

    def met(self, x: Tensor, chosen: Tensor) -> Tensor:
        """x (tokens, width) with its rows `chosen` (tokens, k) -> products (tokens, k)."""
        table = self._wide()
        if table is not None:
            out: Tensor = _Met.apply(x.to(table.dtype), table, chosen, self.sparse)  # type: ignore[no-untyped-call]
            return out
        x = x.float()
        parts = [torch.bmm(rows, x[at, :, None])[..., 0] for at, rows in self._rows(chosen)]
        return torch.cat(parts) if parts else x.new_zeros(chosen.shape)

    def written(self, weights: Tensor, chosen: Tensor) -> Tensor:
        """The sum of the rows `chosen` (tokens, k) by weights (tokens, k) -> (tokens, width)."""
        table = self._wide()
        if table is not None:
            return _sums(weights.to(table.dtype), table, chosen, self.sparse)
        weights = weights.float()
        parts = [torch.bmm(weights[at, None], rows)[:, 0] for at, rows in self._rows(chosen)]
        return torch.cat(parts) if parts else weights.new_zeros(0, self.inputs)

    def _wide(self) -> Tensor | None:
        """The dense table, unless it is packed or narrower than what is summed in."""
        if self.weight is None or self.weight.element_size() < 4:
            return None
        return self.weight

    def _rows(self, chosen: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(tokens, their rows (some, k, width) in float32), not too many at a time."""
        for at in _pieces(chosen, self.inputs):
            rows = self(chosen[at].flatten()).float()
            yield at, rows.unflatten(0, (-1, chosen.shape[1]))


def _pieces(chosen: Tensor, width: int) -> Iterator[slice]:
    """The tokens in runs whose rows are at most `_GATHERED` numbers."""
    size = max(1, _GATHERED // (chosen.shape[1] * width))
    for start in range(0, chosen.shape[0], size):
        yield slice(start, min(start + size, chosen.shape[0]))


def _sums(weights: Tensor, table: Tensor, chosen: Tensor, sparse: bool) -> Tensor:
    """sum_k weights[t, k] table[chosen[t, k]], without a copy of the rows: (tokens, width)."""
    return F.embedding_bag(chosen, table, per_sample_weights=weights, mode="sum", sparse=sparse)


class _Met(Function):
    """Products with gathered rows whose backward needs no copy of them.

    With g the gradient, x's is the sum of the rows by g, and the table's that of such a sum.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, chosen: Tensor, sparse: bool) -> Tensor:
        """x (tokens, width), chosen (tokens, k) -> (tokens, k)."""
        ctx.save_for_backward(x, table, chosen)
        ctx.sparse = sparse
        out = x.new_empty(chosen.shape)
        for at in _pieces(chosen, x.shape[1]):
            out[at] = torch.bmm(table[chosen[at]], x[at, :, None])[..., 0]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Gradient (tokens, k) -> those of x and of the table."""
        x, table, chosen = ctx.saved_tensors
        leaf = table.detach().requires_grad_(ctx.needs_input_grad[1])
        with torch.enable_grad():
            to_x = _sums(grads[0].contiguous(), leaf, chosen, ctx.sparse)
        to_table = None
        if ctx.needs_input_grad[1]:
            (to_table,) = torch.autograd.grad(to_x, leaf, x)
        return to_x.detach(), to_table, None, None
