"""Cross-attention that retrieves: every head reads the few places of a memory it scores highest.

Source: Bertsch et al. 2023, arXiv 2305.01625 (Unlimiformer). A score (h_d W_q)(h_e W_k)^T is the
same as (h_d W_q W_k^T) . h_e, so one datastore of encoder states, as they are, serves the heads of
all layers; a key bias adds a constant to a query's scores, which a softmax does not see. What is
read is a weighted sum of encoder states, and its projection is that of the values: their bias
comes once, since weights sum to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor, nn

from keifu.core.errors import KeifuError
from keifu.nn.attention import CrossAttention, CrossAttentionModule, alike
from keifu.nn.chunks import Overlap
from keifu.nn.linear import Linear
from keifu.nn.pair import Pair
from keifu.nn.state import Entry, Handle, Memory
from keifu.nn.step import Step

ELEMENTS = 1 << 24
"""Numbers, of scores or of retrieved states, that are there at once; a token's are, at least."""


@dataclass(frozen=True, kw_only=True)
class Retrieved(CrossAttention):
    """A cross-attention whose heads each read `places` of the memory, or all it has."""

    places: int

    def build(self) -> nn.Module:
        """As a cross-attention's."""
        return _Retrieved(self)

    def state(self) -> Mapping[str, Entry]:
        """The memory itself, once for all uses: no keys, no values."""
        return {"places": Memory((self.memory_width or self.width,), self.memory, shared="places")}


class _Retrieved(CrossAttentionModule):
    spec: Retrieved

    def read(self, q: Tensor, step: Step, state: Handle | None) -> Tensor:
        """q (tokens, heads, head_width) -> (tokens, heads, head_width)."""
        weight, bias = _affine(self.kv, q)
        keys, values = weight.unflatten(0, (2, self.spec.heads, -1))
        queries = torch.einsum("thc,hcd->thd", q * self.scale, keys)
        held = self._held(step, state)
        found: dict[int, Tensor] = {}
        # Forks read one datastore, so their searches are one product.
        for rows in alike([(memory.data_ptr(), memory.shape) for memory in held]):
            asked = [queries[step.span(row)] for row in rows]
            sums = nearest_sums(torch.cat(asked), held[rows[0]], self.spec.places)
            found |= zip(rows, sums.split([len(some) for some in asked]), strict=True)
        mixed = torch.cat([found[row] for row in range(step.rows)]).to(q.dtype)
        out = torch.einsum("thd,hcd->thc", mixed, values)
        return out if bias is None else out + bias.unflatten(0, (2, self.spec.heads, -1))[1]

    def _held(self, step: Step, state: Handle | None) -> list[Tensor]:
        """Each row's datastore (length, memory width)."""
        if state is None:
            return list(step.memories[self.spec.memory])

        def made(row: int) -> Tensor:
            return step.memories[self.spec.memory][row]

        return [state.memory("places", row, partial(made, row)) for row in range(step.rows)]


def _affine(linear: Linear, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """The matrix (outputs, inputs) and the bias of all that a projection does, deltas included."""
    if not linear.deltas:
        return linear.dense(like.dtype), None if linear.bias is None else linear.bias.to(like.dtype)
    zero = like.new_zeros(1, linear.inputs)
    (bias,) = linear(zero)
    weight: Tensor = linear(torch.eye(linear.inputs, dtype=like.dtype, device=like.device)) - bias
    return weight.T, bias


@torch.no_grad()
def nearest(queries: Tensor, held: Tensor, count: int) -> Tensor:
    """The exact `count` places of held (length, width) of greatest product with each query.

    Args:
        queries: (m, width)

    Returns:
        (m, count) places, best first.
    """
    return (queries.to(held.dtype) @ held.T).topk(count).indices


def nearest_sums(queries: Tensor, held: Tensor, count: int) -> Tensor:
    """The places nearest to each query, weighted by the softmax of their products with it.

    Args:
        queries: (tokens, heads, width), held: (length, width).
        count: places of each query; all, if there are no more.

    Returns:
        (tokens, heads, width) float32
    """
    tokens, heads, width = queries.shape
    count = min(count, held.shape[0])
    every = count == held.shape[0]
    size = heads * (count if every else max(held.shape[0], count * width))
    parts = []
    for asked in queries.flatten(0, 1).split(max(ELEMENTS // size, 1) * heads):
        if every:
            weights = (asked.to(held.dtype) @ held.T).float().softmax(-1)
            parts.append((weights.to(held.dtype) @ held).float())
            continue
        found = held[nearest(asked, held, count)].float()
        scores = (found @ asked.float()[:, :, None]).squeeze(-1)
        parts.append((scores.softmax(-1)[:, None] @ found).squeeze(1))
    return torch.cat(parts).unflatten(0, (tokens, heads)) if parts else queries.float()


def retrieving(pair: Pair, places: int, length: int) -> Pair:
    """Unlimiformer over any pair of attention: sources of any length, the weights as they are.

    Args:
        places: of the source that each head of each cross-attention reads.
        length: tokens of the overlapping chunks in which the source is read.

    Raises:
        KeifuError: no place can be read, or no cross-attention reads them.
    """
    if places < 1:
        raise KeifuError(f"retrieve={places} is not allowed: a head reads at least 1 place")
    blocks = tuple(
        replace(block, cross=_retrieved(block.cross, places))
        if isinstance(block.cross, CrossAttention) and block.cross.memory == pair.memory
        else block
        for block in pair.decoder.blocks
    )
    if blocks == pair.decoder.blocks:
        raise KeifuError("this model has no cross-attention to retrieve for: leave retrieve out")
    decoder = replace(pair.decoder, blocks=blocks)
    return replace(pair, decoder=decoder, chunks=Overlap(length=length))


def _retrieved(cross: CrossAttention, places: int) -> Retrieved:
    plain = {f.name: getattr(cross, f.name) for f in fields(CrossAttention)}
    return Retrieved(**plain, places=places)
