"""Which stacks can be recorded: those whose parts run the same operations whatever the values are.

Parts are known by value; what is not here keeps a model on the plain path, with the reason.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch

from keifu.inference.lowering import Unplanned
from keifu.nn.attention import Attention
from keifu.nn.experts import Experts
from keifu.nn.heads import LMHead
from keifu.nn.inputs import Tokens
from keifu.nn.linear import Weight
from keifu.nn.masks import UNMARKED
from keifu.nn.mlp import MLP, GatedMLP
from keifu.nn.part import Part
from keifu.nn.positions import Alibi, CoarseAlibi, Learned, NoPosition
from keifu.nn.rglru import GatedRecurrence
from keifu.nn.rotary import Rotary
from keifu.nn.routers import TopK
from keifu.nn.ssd import Mamba2
from keifu.nn.ssm import Mamba
from keifu.nn.stack import Stack, StackModule
from keifu.nn.stacked import Stacked
from keifu.nn.state import StatePool
from keifu.nn.step import fresh_step

Terms = dict[Hashable, object]
FREE = (MLP, GatedMLP, Mamba, Mamba2, GatedRecurrence)
"""Parts without conditions."""
LOOKED_UP = ("iq4_nl", "iq4_xs", "mxfp4")
"""Formats whose tables would have to be copied to the device in every step."""


def check(model: StackModule, pool: StatePool, context: int) -> tuple[set[Rotary], Terms]:
    """The rotary schemes of a stack's parts, and their terms that no position changes.

    Raises:
        Unplanned: a part whose shapes depend on values, or that nobody has tried.
    """
    spec = model.spec
    if type(spec) is not Stack:
        raise Unplanned(f"a stack that is {type(spec).__name__}")
    if pool.memories or spec.shared or spec.readout is not None:
        raise Unplanned("memories, shared parts or a readout of several layers")
    if not isinstance(spec.input, Tokens) or spec.input.segments or spec.input.kinds:
        raise Unplanned(f"input {type(spec.input).__name__}, or segments in it")
    learned = spec.input.positions
    if isinstance(learned, Learned) and learned.length < context:
        raise Unplanned(f"a context of {context} and {learned.length} learnt positions")
    if not isinstance(spec.head, LMHead):
        raise Unplanned("no head that gives logits")
    _weights(model)
    turns, known = set[Rotary](), Terms()
    for block in spec.blocks:
        if set(block.branches()) - {"mixer", "mlp"}:
            raise Unplanned(f"branches {', '.join(block.branches())}")
        for part in block.branches().values():
            _part(part, turns, known, pool.device)
    return turns, known


def _weights(model: StackModule) -> None:
    """Refuse weights that are read from a file as they are used, or decoded by a table."""
    for module in model.modules():
        if isinstance(module, Stacked) and not module.whole:
            raise Unplanned("experts that are not in one tensor")
        if isinstance(module, Weight):
            for piece in module.pieces:
                if piece.format.name in LOOKED_UP:
                    raise Unplanned(f"{piece.format.name} weights, whose values are looked up")


def _part(part: Part, turns: set[Rotary], known: Terms, device: torch.device) -> None:
    """Refuse a part, or note what it needs to be given."""
    match part:
        case Attention():
            _attention(part, turns, known, device)
        case Experts():
            if type(part.router) is not TopK or part.capacity is not None:
                raise Unplanned("experts of limited capacity, or that choose their tokens")
        case _ if not isinstance(part, FREE):
            raise Unplanned(f"part {type(part).__name__}")


def _attention(part: Attention, turns: set[Rotary], known: Terms, device: torch.device) -> None:
    if part.mask.ahead or part.mask.given(UNMARKED) != part.mask:
        raise Unplanned(f"mask {part.mask}, which looks ahead or at landmarks")
    position = part.position
    match position:
        case Rotary() if not position.scaling.by_length:
            turns.add(position)
        case Alibi() | CoarseAlibi():
            step = fresh_step([1], device)
            position.bias(step)
            known |= step.known()
        case NoPosition():
            pass
        case _:
            raise Unplanned(f"positions {type(position).__name__}, or scaled by the length")
