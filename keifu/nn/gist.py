"""Gist tokens (Mu et al. 2023): any stack or pair with a mask that presses a prompt into a few.

The vocabulary has one more token, which stands k times after the prompt. What follows it sees the
gist tokens and not the prompt (`keifu.nn.masks.Gist`), so training makes them carry it; later their
keys and values alone stand for the prompt (`keifu.nn.past`). No weight is added beyond the token's
row, so a gist checkpoint is its family's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import overload

from keifu.core.errors import KeifuError
from keifu.nn.attention import Attention
from keifu.nn.block import Block
from keifu.nn.masks import UNMARKED, Gist, Landmarks
from keifu.nn.pair import Pair
from keifu.nn.stack import Stack

TOKEN = "<GIST>"
"""How the published checkpoints spell it."""


@overload
def gisted(spec: Stack, mask: Gist = ...) -> Stack: ...
@overload
def gisted(spec: Pair, mask: Gist = ...) -> Pair: ...
def gisted(spec: Stack | Pair, mask: Gist = Gist()) -> Stack | Pair:
    """The same model with the mask in every self-attention; of a pair, in its encoder's.

    A pair's decoder then reads the source's memory from where the mask says (section 3.1 of the
    paper). `Severed()` makes the negative control.

    Raises:
        KeifuError: a mixer that has no mask, and so reads past any gist token; or rows that are
            not read whole (in segments, in chunks).
    """
    if isinstance(spec, Pair):
        if spec.chunks is not None:
            raise KeifuError("a source that is read in chunks has no gist tokens that all can see")
        return replace(spec, encoder=_masked(spec.encoder, mask), since=mask)
    return _masked(spec, mask)


def _masked(spec: Stack, mask: Gist) -> Stack:
    if type(spec) is not Stack:
        raise KeifuError(f"{type(spec).__name__} has no rows that gist tokens could divide")
    return replace(spec, blocks=tuple(_block(block, mask) for block in spec.blocks))


def _block(block: Block, mask: Gist) -> Block:
    mixer = block.mixer
    if not isinstance(mixer, Attention):
        raise KeifuError(
            f"{type(mixer).__name__} reads on past gist tokens: they need attention in every block"
        )
    return replace(block, mixer=replace(mixer, mask=mixer.mask & mask))


def landmarks_of(ids: Sequence[int], token: int | None) -> Landmarks:
    """Where a row's gist tokens are; no landmark where there are none, or no such token.

    Raises:
        KeifuError: they do not stand together.
    """
    if token is None or token not in ids:
        return UNMARKED
    first = list(ids).index(token)
    end = first
    while end < len(ids) and ids[end] == token:
        end += 1
    if token in ids[end:]:
        raise KeifuError(f"gist tokens at {first} and at {end + list(ids[end:]).index(token)}: "
                         "they must stand together, and once")  # fmt: skip
    return Landmarks(gist=(first, end))
