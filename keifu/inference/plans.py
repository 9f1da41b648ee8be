"""Plans: a stack's parts, known by value, lowered to a native tape (on a device: recorded).

What a plan does not know (a part, a wiring, a weight format) leaves the whole model on the plain
path, with the reason (`keifu doctor` shows it). Plan = plain is a contract test.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from torch import Tensor, nn

from keifu.core import machine
from keifu.inference.choosing import posed
from keifu.inference.device import DevicePlan
from keifu.inference.lower_layers import attention, gated_mlp, mlp
from keifu.inference.lower_recurrent import gated_recurrence, mamba, mamba2
from keifu.inference.lowering import Lower, Lowering, Place, Unplanned, vector
from keifu.inference.page_rows import PageRows
from keifu.inference.runner import Feed, Runner, Stride
from keifu.nn.attention import Attention
from keifu.nn.block import Block
from keifu.nn.heads import LMHead
from keifu.nn.inputs import Tokens
from keifu.nn.kernels import native
from keifu.nn.kernels.program import Program
from keifu.nn.kernels.tape import Tape, Value
from keifu.nn.kernels.tiles import tile
from keifu.nn.linear import Linear
from keifu.nn.masks import UNMARKED
from keifu.nn.mlp import MLP, GatedMLP
from keifu.nn.part import Part
from keifu.nn.past import first
from keifu.nn.positions import Learned
from keifu.nn.rglru import GatedRecurrence
from keifu.nn.ssd import Mamba2
from keifu.nn.ssm import Mamba
from keifu.nn.stack import Stack, StackModule
from keifu.nn.state import RequestState, StatePool
from keifu.nn.wiring import BranchPost, Parallel, ParallelNorms, Post, Pre, Sandwich

FEW, MANY = 32, 512
"""Most tokens of a step that goes through a tape. Dense weights are faster as matrix products
beyond a few tokens; packed ones, with activations in two 8-bit planes, are as fast on a tape (512
tokens of smollm2-135m: 1.19 s of one core either way) and nearer to float32 (0.24 % of the logits
against 0.97 %), unless the processor has matrix units for bfloat16."""

PARTS: Mapping[type[Part], Lower] = {
    Attention: attention,
    MLP: mlp,
    GatedMLP: gated_mlp,
    Mamba: mamba,
    Mamba2: mamba2,
    GatedRecurrence: gated_recurrence,
}
"""How the parts of a block are lowered; what is not here stays on the plain path."""

Ints = np.ndarray[Any, np.dtype[np.int32]]
Branch = Callable[..., Value]
"""(input, residual to add to or None) -> value."""


@dataclass
class _Stack:
    """The lowering of a whole stack: its input, its blocks in their wiring, its head."""

    model: StackModule
    work: Lowering

    def embed(self) -> Value:
        """The input: table, positions, norm."""
        module: Any = self.model.input
        spec = module.spec
        if not isinstance(spec, Tokens) or spec.segments or module.project is not None:
            raise Unplanned(f"input {type(spec).__name__} with segments or a projection")
        (table,) = self.work.weight(module.table)
        x = self.work.tape.embed(table, scale=spec.scale)
        if isinstance(spec.positions, Learned):
            rows = tile(module.positions.weight.float())
            self.work.tape.embed(rows, by="position", offset=spec.positions.offset, into=x)
        elif spec.positions is not None:
            raise Unplanned(f"positions {type(spec.positions).__name__}")
        return x if module.norm is None else self.work.norm(module.norm, x)

    def block(self, use: int, module: Any, x: Value) -> Value:
        """One use of a block: its branches in their wiring."""
        spec: Block = module.spec
        if set(spec.branches()) - {"mixer", "mlp"}:
            raise Unplanned(f"branches {', '.join(spec.branches())}")
        branches = {
            name: self.branch(Place(use, name), part, module.get_submodule(name))
            for name, part in spec.branches().items()
        }
        return self.wire(spec.wiring, module.norms, branches, x)

    def branch(self, place: Place, part: Part, module: nn.Module) -> Branch:
        """What lowers a part in its place."""
        if type(part) not in PARTS:
            words = {"mixer": "token mixer", "mlp": "channel mixer"}[place.branch]
            raise Unplanned(f"{words} {type(part).__name__}")
        lower = PARTS[type(part)]

        def lowered(x: Value, into: Value | None = None) -> Value:
            return lower(self.work, place, module, x, into)

        return lowered

    def wire(
        self, wiring: Any, norms: nn.ModuleDict, branches: dict[str, Branch], x: Value
    ) -> Value:
        """The residual stream x, in place, through the branches."""
        match wiring:
            case Parallel():
                y = self.work.norm(norms[f"{next(iter(branches))}_norm"], x)
                for branch in branches.values():
                    self.join(wiring, branch, y, x)
            case ParallelNorms():
                ys = [self.work.norm(norms[f"{name}_norm"], x) for name in branches]
                for y, branch in zip(ys, branches.values(), strict=True):
                    self.join(wiring, branch, y, x)
            case Pre() | Post() | BranchPost() | Sandwich():
                for name, branch in branches.items():
                    self.in_turn(wiring, norms, name, branch, x)
            case _:
                raise Unplanned(f"wiring {type(wiring).__name__}")
        return x

    def in_turn(
        self, wiring: Any, norms: nn.ModuleDict, name: str, branch: Branch, x: Value
    ) -> None:
        """One branch of a sequential wiring."""
        norm = norms[f"{name}_norm"]
        match wiring:
            case Pre():
                self.join(wiring, branch, self.work.norm(norm, x), x)
            case Post():
                self.join(wiring, branch, x, x)
                self.work.norm(norm, x, into=x)
            case BranchPost():
                self.work.tape.add(self.work.norm(norm, branch(x)), x, scale=wiring.scale, into=x)
            case Sandwich():
                y = self.work.norm(norms[f"{name}_post_norm"], branch(self.work.norm(norm, x)))
                self.work.tape.add(y, x, scale=wiring.scale, into=x)

    def join(self, wiring: Any, branch: Branch, y: Value, x: Value) -> None:
        """Add a branch of y to the stream x: within its last product where it is not scaled."""
        if wiring.scale == 1.0:
            branch(y, x)
        else:
            self.work.tape.add(branch(y), x, scale=wiring.scale, into=x)

    def logits(self, x: Value) -> Value:
        """Chosen rows through the last norm and the head."""
        module: Any = self.model.head
        if module is None or not isinstance(module.spec, LMHead) or module.project is not None:
            raise Unplanned("a head other than plain logits")
        if self.model.readout is not None:
            raise Unplanned("a readout of several layers")
        x = self.work.tape.select(x)
        if self.model.norm is not None:
            x = self.work.norm(self.model.norm, x)
        spec: LMHead = module.spec
        if spec.shift:
            raise Unplanned("logits shifted by a constant")
        if module.out is None:
            table: Any = self.model.input
            out = self.work.tape.linear(x, self.work.weight(table.table), vector(module.bias))
        else:
            out = self.work.linear(module.out, x)
        if spec.scale != 1.0:
            self.work.tape.scale(out, spec.scale, into=out)
        if spec.softcap is not None:
            self.work.tape.softcap(out, spec.softcap, into=out)
        return self.work.tape.output(out)


def _rows(model: StackModule) -> int:
    """Up to how many tokens a tape is the faster way for this model on this machine."""
    products = [m for m in model.blocks.modules() if isinstance(m, Linear)]
    packed = all(m.weight is None for m in products)
    return MANY if packed and "amx_bf16" not in machine.features() else FEW


def whole(model: nn.Module) -> bool:
    """Whether this machine runs all of a model's steps through a tape, prompts too, as far as its
    parts tell: then state is best kept in 8 bits, as the kernels read it."""
    if (
        not native.available()
        or not isinstance(model, StackModule)
        or type(model.spec) is not Stack
    ):
        return False
    parts = {type(part) for block in model.spec.blocks for part in block.branches().values()}
    return type(model.spec) is Stack and parts <= PARTS.keys() and _rows(model) == MANY


class Plan(Runner):
    """A runner over a native tape."""

    free = 3.0
    """smollm2-135m, two threads: 4.4 ms for one token and 1.1 for each of eight more after 64
    tokens, 5.1 and 1.1 after 512, 6.7 and 2.8 after 2,048."""

    def __init__(
        self, model: StackModule, pool: StatePool, context: int, rows: int | None = None
    ) -> None:
        if not native.available():
            raise Unplanned(f"no native kernels: {native.why()}")
        if type(model.spec) is not Stack:
            raise Unplanned(f"a stack that is {type(model.spec).__name__}")
        if model.shared:
            raise Unplanned("shared parts")
        self.pool, self.rows = pool, rows or _rows(model)
        work = Lowering(pool, Tape(self.rows), context)
        stack = _Stack(model, work)
        x = stack.embed()
        for use, index in enumerate(model.spec.order()):
            x = stack.block(use, model.blocks[index], x)
        self._out = stack.logits(x)
        if left := {name for _, name in pool.fixed.keys() - work.kept}:
            raise Unplanned(f"state that is not a mixer's: {', '.join(sorted(left))}")
        self._gist = _gist(model)
        self._turns = [(spec, turn) for spec, turn in work.turns.items() if turn.by_row]
        self.program = Program(work.tape)
        self._held = [PageRows(-(-group.sinks // group.page)) for group in pool.groups]

    def takes(self, lengths: Sequence[int], states: Sequence[RequestState]) -> bool:
        """Steps that its buffers hold, of requests whose first tokens, if they stay, are there."""
        sinks = any(group.sinks for group in self.pool.groups)
        return sum(lengths) <= self.rows and not (sinks and any(map(first, states)))

    def run(self, feed: Feed, select: Sequence[int]) -> Tensor:
        """Logits (len(select), vocab) of the selected tokens."""
        self.program.run(**self._laid(feed), chosen=select)
        return self.program.view(self._out, len(select))

    def stride(self, feed: Feed, how: Stride) -> Sequence[Sequence[int]]:
        """Steps in a row, where all that changes between them is what the kernels know of."""
        if self._turns or self._gist:
            return ()
        rows = range(len(feed.states))
        logits = self.program.view(self._out, len(rows))
        tokens: list[list[int]] = self.program.go_on(
            posed(list(zip(how.choosers, how.places, rows, strict=True)), logits),
            how.ends,
            how.hurry,
            most=how.most,
            seconds=how.seconds,
            chosen=rows,
            **self._laid(feed),
        ).tolist()
        return tokens

    def _laid(self, feed: Feed) -> dict[str, Any]:
        """What a step works on, as the tape reads it."""
        states, ids = feed.states, feed.ids
        if len(ids) == len(states):  # a token each, as most steps are: nothing to spread over rows
            owners: Any = range(len(states))
            positions: Any = [state.length for state in states]
            lengths: Any = [state.length + 1 - first(state) for state in states]
            coarse: Any = list(map(operator.lt, positions, feed.coarse))
        else:
            owners = np.repeat(np.arange(len(states), dtype=np.int32), feed.lengths)
            begins = [state.length - at for state, at in zip(states, _offsets(feed), strict=True)]
            positions = np.arange(len(ids), dtype=np.int32) + np.array(begins)[owners]
            lengths = positions + 1 - np.array([first(state) for state in states])[owners]
            coarse = positions < np.array(feed.coarse)[owners] if feed.coarse else ()
        if self._turns:
            step = feed.step(self.pool.device)
            for spec, turn in self._turns:
                cos, sin = spec.tables(step)
                turn.cos[: len(ids)], turn.sin[: len(ids)] = cos, sin
        return {
            "tokens": ids,
            "positions": positions,
            "lengths": lengths,
            "starts": _starts(feed, np.asarray(positions), owners) if self._gist else None,
            "owners": owners,
            "coarse": coarse if any(coarse) else None,
            "slots": _slots(states) if self.pool.fixed else None,
            "tables": [
                held.of([state.tables[i] for state in states]) for i, held in enumerate(self._held)
            ],
            "requests": len(states),
        }


def _offsets(feed: Feed) -> list[int]:
    """Where in the step each request's tokens begin."""
    return list(accumulate(feed.lengths, initial=0))[:-1]


def _starts(feed: Feed, positions: Ints, owners: Sequence[int]) -> Ints:
    """The first slot that each token may see: after gist tokens, the first of them."""
    spans = [marks.gist or (0, 0) for marks in feed.landmarks] or [(0, 0)] * len(feed.states)
    at = np.asarray(owners)
    begins, ends = np.array(spans, dtype=np.int32)[at].T
    forgotten = np.array([first(state) for state in feed.states], dtype=np.int32)[at]
    starts: Ints = np.where(positions >= ends, begins, 0).astype(np.int32) - forgotten
    return starts


def _gist(model: StackModule) -> bool:
    """Whether attention heeds gist tokens, which the tape is told of all layers at once."""
    mixers = [block.mixer for block in model.spec.blocks]
    heed = {isinstance(m, Attention) and m.mask.given(UNMARKED) != m.mask for m in mixers}
    if len(heed) > 1:
        raise Unplanned("gist tokens in some layers")
    return heed == {True}


def _slots(states: Sequence[RequestState]) -> Ints:
    """Where each request keeps its fixed entries."""
    return np.array([state.slot for state in states], dtype=np.int32)


def runners(model: StackModule, pool: StatePool, context: int) -> tuple[list[Runner], str]:
    """The fast runners that this model and this machine allow, and why there is none."""
    made: type[Plan] | type[DevicePlan] = Plan if pool.device.type == "cpu" else DevicePlan
    try:
        return [made(model, pool, context)], ""
    except Unplanned as reason:
        return [], str(reason)
