"""Early exit: the model's own first layers guess, through its last norm and its head.

Zhang et al. 2023 (Draft & Verify), Elhoushi et al. 2024 (LayerSkip): the layers that guess write
the state that the whole model would, so there is no second past to read or to hold.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from keifu.core.errors import KeifuError
from keifu.inference.sequence import Sequence as Output
from keifu.inference.speculation import Draft, Drafter, Load, Target
from keifu.nn.part import count
from keifu.nn.stack import StackModule


class EarlyExit(Drafter):
    """Guesses by the first `uses` of the stack; None: a third of them."""

    def __init__(self, target: Target, uses: int | None = None) -> None:
        self.target = target
        every = len(target.model.spec.order())
        uses = max(1, every // 3) if uses is None else uses
        if not 1 <= uses < every:
            raise KeifuError(
                f"early-exit:{uses} is not allowed: the first 1 to {every - 1} layers can guess"
            )
        early = first_uses(target.model, uses)
        self.runners = target.ways(early, target.pool, target.context)
        blocks = [count(b) for b in target.model.spec.blocks]
        used = [blocks[i] for i in target.model.spec.order()]
        head = count(target.model.spec) - sum(blocks)
        self.price = (sum(used[:uses]) + head) / (sum(used) + head)

    @classmethod
    def of(cls, argument: str, load: Load) -> Draft:
        """The argument is the number of uses."""
        if argument and not argument.isdecimal():
            raise KeifuError(f"early-exit:{argument} is not allowed: a number of layers goes there")
        return lambda target: cls(target, int(argument) if argument else None)

    def propose(self, outputs: Sequence[Output], counts: Sequence[int]) -> None:
        """One token of all outputs in a step; what was written is forgotten again."""
        pool, choose = self.target.pool, [o.guesser() for o in outputs]
        states = [o.state for o in outputs if o.state is not None]
        before = [state.length for state in states]
        for state in states:
            pool.snapshot(state)
        try:
            for made in range(max(counts)):
                rows = [i for i, n in enumerate(counts) if n > made]
                logits = self.target.forward(
                    [outputs[i] for i in rows],
                    [1] * len(rows),
                    range(len(rows)),
                    runners=self.runners,
                )
                for i, row in zip(rows, logits, strict=True):
                    outputs[i].guessed.append(choose[i](row))
        finally:
            for state, length in zip(states, before, strict=True):
                pool.restore(state, length)


def first_uses(model: StackModule, uses: int) -> StackModule:
    """The same modules, run only so far: parameters are shared, nothing is copied."""
    if model.readout is not None:
        raise KeifuError(
            "this model reads out all of its layers together, so that the first ones alone say "
            "nothing: speculate with lookup or draft:MODEL"
        )
    early = copy.copy(model)
    early.spec = replace(model.spec, uses=model.spec.order()[:uses])
    return early


drafter = EarlyExit
