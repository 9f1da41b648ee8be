"""Speculation: tokens guessed ahead, read with the next one in the same step, kept where right.

An output chooses every token itself, from the model's logits, with its own draws: a guess that
is the token it chose saves a step, any other is taken back (Stern et al. 2018, section 3). So an
output is, draw for draw, what it is without speculation, whatever the sampling settings are,
however many guesses there are and whoever made them, as far as a step of several tokens gives the
logits of steps of one: a plan gives their very bits, PyTorch rounds otherwise. Under a constraint
that holds for greedy outputs; drawn ones are valid, but not the same draws. A drafter that draws
uses the draws that the output will make at the same places (Daliri et al. 2024, section 3);
accepting with probability min(1, p/q) (Leviathan et al. 2023) would let outputs depend on the
drafter.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from keifu.inference.request import Delta
from keifu.inference.runner import Runner, Ways
from keifu.inference.sequence import Sequence as Output
from keifu.nn.pages import OutOfState
from keifu.nn.stack import StackModule
from keifu.nn.state import StatePool
from keifu.text.tokenizer import Tokenizer

MOST = 8
"""Most tokens guessed at once."""
WAIT = 16
"""Steps without guesses after they stopped paying; doubled each time that they still do not."""


class Forward(Protocol):
    """Runs outputs' next tokens, those that were guessed among them; an engine's."""

    def __call__(
        self,
        outputs: list[Output],
        lengths: list[int],
        select: Sequence[int],
        *,
        runners: Sequence[Runner] | None = None,
    ) -> Tensor:
        """Logits (len(select), vocab); with guesses or `runners`, what was read can be undone."""


class Target(NamedTuple):
    """The model that is guessed for."""

    model: StackModule
    tokenizer: Tokenizer
    pool: StatePool
    context: int
    forward: Forward
    ways: Ways


@dataclass(frozen=True, kw_only=True)
class Guide:
    """A second model, with state of its own, that may guess."""

    name: str
    model: StackModule
    tokenizer: Tokenizer
    pool: StatePool
    context: int
    compute: torch.dtype | None = None


Load = Callable[[str], Guide]
Draft = Callable[[Target], "Drafter"]
"""Makes the drafter of an engine, which knows its model and state."""


class Drafter(ABC):
    """Something that guesses how outputs go on."""

    price: float = 0.0
    """What one guessed token costs, in steps of the model."""

    @classmethod
    @abstractmethod
    def of(cls, argument: str, load: Load) -> Draft:
        """What makes it.

        Args:
            argument: what a user wrote after its name ("" for nothing).
            load: opens a second model.
        """

    @abstractmethod
    def propose(self, outputs: Sequence[Output], counts: Sequence[int]) -> None:
        """Add to each output's `guessed` (empty now) at most so many tokens, at least one.

        Outputs have exactly one token that the model has not read. Those that draw choose by
        `Output.guesser`.
        """


class Pace:
    """How far ahead one output is guessed: as far as it pays by what came of it so far."""

    def __init__(self) -> None:
        self.right, self.tried = 0.0, 0.0
        self.idle, self.wait = 0, WAIT

    @property
    def rate(self) -> float:
        """The chance that a guess is right if those before it are; old guesses fade."""
        return (self.right + 1.0) / (self.tried + 2.0)

    def count(self, worth: float) -> int:
        """Tokens to guess where a guess pays that is right with a chance above `worth`."""
        if self.rate > worth:
            return min(MOST, int(math.log(max(worth, 1e-3)) / math.log(self.rate)))
        self.idle += 1
        return 1 if self.idle > self.wait else 0

    def learn(self, guessed: int, accepted: int) -> None:
        """What came of a draft: the guesses after the first wrong one say nothing."""
        if self.idle > self.wait:
            self.wait = WAIT if accepted else min(2 * self.wait, 1024)
        self.idle = 0
        self.right = 0.8 * self.right + accepted
        self.tried = 0.8 * self.tried + accepted + (accepted < guessed)


class Speculation:
    """The guesses of one engine: made before its step, taken back after it where wrong.

    Args:
        free: what its steps cost for themselves, in tokens (`Runner.free`).
    """

    def __init__(self, drafter: Drafter, pool: StatePool, free: float) -> None:
        self.drafter, self.pool, self.free = drafter, pool, free
        self.drafts = self.drafted = self.accepted = 0
        """Steps of an output with guesses, tokens guessed, and those that were right."""
        self._paces: WeakKeyDictionary[Output, Pace] = WeakKeyDictionary()

    def worth(self, rows: int) -> float:
        """How likely a guess must be right to pay, in a step of so many outputs.

        A step costs as much as `free` + rows tokens and makes one for each output; a guess costs
        one more, and its making.
        """
        price = 1.0 + self.drafter.price * (self.free + 1.0)
        return rows * price / (self.free + rows)

    def draft(self, outputs: Sequence[Output]) -> None:
        """Fill the outputs' `guessed`, as far as it pays and the state has room for it."""
        worth = self.worth(len(outputs))
        asked: list[tuple[Output, int]] = []
        for output in outputs:
            output.guessed = []
            pace = self._paces.setdefault(output, Pace())
            count = min(pace.count(worth) if worth < 1.0 else 0, self._room(output))
            if count > 0 and output.pending == 1 and self._reserve(output, count):
                asked.append((output, count))
        if asked:
            self.drafter.propose([o for o, _ in asked], [n for _, n in asked])
        for output, _ in asked:
            output.guessed = output.possible(output.guessed)
            if not (output.guessed and self._reserve(output, len(output.guessed))):
                output.guessed = []
            elif output.state is not None:
                self.pool.snapshot(output.state)

    @staticmethod
    def _room(output: Output) -> int:
        """Tokens that may still come before the last one."""
        most = output.job.sampling.max_tokens
        left = output.job.limit - output.length
        return (left if most is None else min(left, most - output.generated)) - 1

    def _reserve(self, output: Output, count: int) -> bool:
        """Take room for guesses where it is free: nobody gives way to them."""
        assert output.state is not None
        try:
            self.pool.reserve(output.state, 1 + count)
        except OutOfState:
            return False
        return True

    def take(self, output: Output, rows: Tensor) -> Iterator[Delta]:
        """Choose tokens from logits (1 + guesses, vocab) until one is not what was guessed."""
        before = output.accepted
        output.drafted += len(output.guessed)
        for row, guess in zip(rows, [*output.guessed, None], strict=True):
            delta = output.next(row, guess)
            over = delta.finish is not None or output.tokens[-1] != guess
            if over:
                self._settle(output, output.accepted - before)
            yield delta
            if over:
                return

    def _settle(self, output: Output, accepted: int) -> None:
        """Keep what was read of the right guesses and go back on the others.

        A recurrence goes back to where it was before the step, and reads again what was right.
        """
        guessed, output.guessed, state = len(output.guessed), [], output.state
        assert state is not None
        before = state.length - 1 - guessed
        if accepted < guessed:
            self.pool.restore(state, before + 1 + accepted)
        state.snapshots.pop(before, None)
        self.pool.advance(state, 0)
        self._paces[output].learn(guessed, accepted)
        self.drafts += 1
        self.drafted += guessed
        self.accepted += accepted
