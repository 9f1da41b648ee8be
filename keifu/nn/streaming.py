"""Texts without end: attention over a window and the first tokens, its sinks, for any decoder.

Xiao et al. 2023 (StreamingLLM, arXiv 2309.17453), section 3.2. What is kept of a text is its first
`sinks` tokens and its last `window`; positions are those inside this cache, so no distance grows
beyond `sinks + window` however long the text is. It changes a spec, not weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.nn.attend import Bias
from keifu.nn.attention import Attention
from keifu.nn.block import Block
from keifu.nn.inputs import Tokens
from keifu.nn.masks import Both, Causal, Mask, Window
from keifu.nn.pair import Pair
from keifu.nn.part import Part
from keifu.nn.positions import Alibi, LogN, NoPosition, Position, SharedBias
from keifu.nn.rotary import Rotary
from keifu.nn.stack import Stack
from keifu.nn.state import PerToken
from keifu.nn.step import Step


@dataclass(frozen=True)
class Cached(Position):
    """A relative scheme `inner` with positions counted inside the cache.

    A token is at min(its position, sinks + window - 1) when it asks, and keys of the window lie as
    far behind it as in the text: there the inner scheme is right as it is. Only the sinks, which
    stay at 0 ... sinks - 1, are nearer than in the text. So a query comes in two forms, side by
    side, one for each kind of key, and a key has zeros where the other form is: one product, one
    softmax. Keys are stored as the inner scheme leaves them, whatever happens later.
    """

    inner: Rotary | Alibi | SharedBias
    window: int
    sinks: int

    @property
    def last(self) -> int:
        """The highest position inside the cache."""
        return self.sinks + self.window - 1

    @property
    def _two(self) -> bool:
        """Whether queries and keys themselves carry positions, and sinks need a second form."""
        return isinstance(self.inner, Rotary) and self.sinks > 0

    def _steps(self, step: Step) -> tuple[Step, Step]:
        """The step as keys of the window meet it, and as the sinks do; each with its own terms."""
        limits = tuple(min(limit, self.last + 1) for limit in step.limits)
        # Angles of far positions in float64: their differences are what counts.
        near = replace(step, positions=step.positions.double(), limits=limits, _terms={})
        far = replace(near, positions=near.positions.clamp(max=self.last), _terms={})
        return near, far

    def both(self, step: Step) -> tuple[Step, Step]:
        """`_steps`, once a step."""
        return step.term(("cached", self.window, self.sinks), lambda: self._steps(step))

    def tables(self, step: Step) -> tuple[Tensor, Tensor]:
        """The rotary tables of keys, and of queries that meet the window's."""
        if not isinstance(self.inner, Rotary):
            raise TypeError(f"{type(self.inner).__name__} turns nothing")
        return self.inner.tables(self.both(step)[0])

    def rotate(self, q: Tensor, k: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """q (tokens, heads, 2 * width): for the window, then for the sinks; k as it is stored."""
        near, far = self.both(step)
        turned, k_near = self.inner.rotate(q, k, near)
        if not self._two:
            return turned, k_near
        return torch.cat([turned, self.inner.rotate(q, k, far)[0]], -1), k_near

    def met(self, k: Tensor, positions: Tensor) -> Tensor:
        """k (rows, m, groups, width) -> (rows, m, groups, 2 * width), half of it zeros."""
        if not self._two:
            return k
        first = (positions < self.sinks)[:, None, None]
        return torch.cat([k.masked_fill(first, 0), k.masked_fill(~first, 0)], -1)

    def bias(self, step: Step) -> Bias | None:
        """The inner scheme's, with the sinks at their distances inside the cache."""
        inner = self.inner.bias(step)
        if inner is None:
            return None

        def added(query: Tensor, key: Tensor) -> Tensor:
            kept = int((key < self.sinks).sum())
            early = inner(query.clamp(max=self.last), key[:kept])
            return torch.cat([early, inner(query, key[kept:])], -1)

        return added


@dataclass(frozen=True)
class Back:
    """The turn of a query that meets the window's keys to one that meets the sinks'."""

    cached: Cached

    def tables(self, step: Step) -> tuple[Tensor, Tensor]:
        """cos and sin (tokens, width / 2) of the angle between the two forms."""
        inner = self.cached.inner
        if not isinstance(inner, Rotary):
            raise TypeError(f"{type(inner).__name__} turns nothing")
        (cos, sin), (far_cos, far_sin) = (inner.tables(s) for s in self.cached.both(step))
        size = cos.square() + sin.square()  # a factor that some scalings put on both
        return (far_cos * cos + far_sin * sin) / size, (far_sin * cos - far_cos * sin) / size


def streaming(spec: Part, window: int, sinks: int = 4) -> Stack | Pair:
    """The decoder `spec` with a window and sinks in place of attention to the whole past.

    Its weights are the same. A layer whose own window is no wider stays as it is; of an
    encoder-decoder, the decoder changes.

    Args:
        window: most recent tokens that a token sees, itself among them.
        sinks: first tokens that stay visible; the paper's four make up for what a softmax without
            anything to look at has learnt to look at.

    Raises:
        KeifuError: the model has positions that end, or remembers otherwise.
    """
    if window < 1 or sinks < 0:
        raise KeifuError(
            f"window={window}, sinks={sinks} is not allowed: at least 1 and at least 0"
        )
    if sinks >= window:
        raise KeifuError(
            f"sinks={sinks} with window={window} is not allowed: fewer sinks than the window's "
            "tokens"
        )
    if isinstance(spec, Pair):
        return replace(spec, decoder=_stack(spec.decoder, window, sinks))
    if not isinstance(spec, Stack):
        raise KeifuError(f"a {type(spec).__name__} reads no text in order: it has no window")
    return _stack(spec, window, sinks)


def _stack(spec: Stack, window: int, sinks: int) -> Stack:
    if not isinstance(spec.input, Tokens):
        raise KeifuError(f"an input of {type(spec.input).__name__} has no form with a window")
    if (positions := spec.input.positions) is not None:
        kind = type(positions).__name__.lower()
        raise KeifuError(
            f"{kind} positions are added to the tokens and count from the text's beginning: a "
            "window needs rotary, ALiBi or relative ones"
        )
    blocks = tuple(_block(block, window, sinks) for block in spec.blocks)
    if blocks == spec.blocks:
        raise KeifuError("no attention reaches further than the window: the model needs none")
    return replace(spec, blocks=blocks)


def _block(block: Block, window: int, sinks: int) -> Block:
    mixer = block.mixer
    if isinstance(mixer, Attention):
        return replace(block, mixer=_attention(mixer, window, sinks))
    endless: Mapping[str, object] = {
        name: entry
        for name, entry in mixer.state().items()
        if isinstance(entry, PerToken) and entry.window is None
    }
    if endless:
        raise KeifuError(f"a {type(mixer).__name__} keeps every token and knows no window")
    return block


def _attention(spec: Attention, window: int, sinks: int) -> Attention:
    if spec.mask.back is not None and spec.mask.back <= window:
        return spec
    mask = _mask(spec.mask, window, sinks)
    return replace(spec, mask=mask, position=_position(spec.position, window, sinks))


def _mask(mask: Mask, window: int, sinks: int) -> Mask:
    """Causal with the window, in place of one that is wider: it would hide the sinks."""
    match mask:
        case Causal() | Both(Causal(), Window()):
            return Causal() & Window(window, sinks)
    raise KeifuError(f"attention under {mask} has no form with a window: only causal attention has")


def _position(position: Position, window: int, sinks: int) -> Position:
    match position:
        case NoPosition():
            return position
        case Rotary() | Alibi() | SharedBias():
            return Cached(position, window, sinks)
        case LogN(inner, length) if window + sinks <= length:
            return _position(inner, window, sinks)  # no position inside the cache makes it grow
    raise KeifuError(
        f"{type(position).__name__} positions have no form inside a cache of {window} + {sinks} "
        "tokens"
    )
