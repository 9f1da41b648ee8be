"""Who runs an engine's model: this process alone, or with others that follow it.

What an engine decides (whom to admit, which page to take, which token to draw) it decides once, in
the first process. The others repeat its calls on pools of their own, which are as long and give out
the same pages in the same order, so that a call is all that has to be told, and run the same steps.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.inference.radix import PrefixTree
from keifu.inference.runner import Feed, Runner, TorchRunner
from keifu.nn.pages import OutOfState
from keifu.nn.stack import StackModule
from keifu.nn.state import RequestState, StatePool


class Lost(KeifuError):
    """A process that shares the model has ended, and with it all that ran."""


class Crew:
    """One process alone."""

    lost: Lost | None = None
    size = 1

    def pool(self, entries: Sequence[Mapping[str, Any]], **given: Any) -> StatePool:
        """The pool of an engine's state."""
        return StatePool(entries, **given)

    def tree(self, pool: StatePool) -> PrefixTree:
        """What its requests have read."""
        return PrefixTree(pool)

    def runner(self, model: StackModule, pool: StatePool) -> Runner:
        """The plain way to run its model."""
        return TorchRunner(model, pool)

    def close(self) -> None:
        """Let the others go."""


class Teller(Protocol):
    """What tells the others."""

    def calling(self, what: str, *args: Any) -> AbstractContextManager[None]:
        """A call is made; those that it makes itself are not told."""

    def step(self, told: Mapping[str, Any]) -> AbstractContextManager[None]:
        """A step runs, in all processes; whatever goes wrong in it is the end."""


class ToldPool(StatePool):
    """A pool whose calls are told; states go by numbers."""

    def __init__(self, entries: Sequence[Mapping[str, Any]], teller: Teller, **given: Any) -> None:
        super().__init__(entries, **given)
        self._teller, self._made = teller, 0
        self.names: dict[RequestState, int] = {}

    def _name(self) -> int:
        self._made += 1
        return self._made

    def open(self, memories: Mapping[str, int] | None = None) -> RequestState:
        """`StatePool.open`."""
        if memories:
            raise KeifuError("a model over several processes reads no memories")
        name = self._name()
        with self._teller.calling("open", name):
            state = super().open()
        self.names[state] = name
        return state

    def fork(self, state: RequestState) -> RequestState:
        """`StatePool.fork`."""
        name = self._name()
        with self._teller.calling("fork", name, self.names[state]):
            other = super().fork(state)
        self.names[other] = name
        return other

    def free(self, state: RequestState) -> None:
        """`StatePool.free`."""
        with self._teller.calling("free", self.names.get(state)):
            super().free(state)
        self.names.pop(state, None)

    def reserve(self, state: RequestState, tokens: int) -> None:
        """`StatePool.reserve`."""
        with self._teller.calling("reserve", self.names[state], tokens):
            super().reserve(state, tokens)

    def advance(self, state: RequestState, tokens: int, *, undoable: bool = False) -> None:
        """`StatePool.advance`."""
        with self._teller.calling("advance", self.names[state], tokens, undoable):
            super().advance(state, tokens, undoable=undoable)

    def snapshot(self, state: RequestState) -> None:
        """`StatePool.snapshot`."""
        with self._teller.calling("snapshot", self.names[state]):
            super().snapshot(state)

    def restore(self, state: RequestState, length: int) -> int:
        """`StatePool.restore`."""
        with self._teller.calling("restore", self.names[state], length):
            return super().restore(state, length)


class ToldTree(PrefixTree):
    """A tree whose calls are told."""

    def __init__(self, pool: ToldPool, teller: Teller) -> None:
        super().__init__(pool)
        self._teller, self._states = teller, pool.names

    def fill(self, state: RequestState, key: Hashable, tokens: Sequence[int], by: int = 1) -> int:
        """`PrefixTree.fill`."""
        with self._teller.calling("fill", self._states[state], key, list(tokens), by):
            return super().fill(state, key, tokens, by)

    def store(
        self, state: RequestState, key: Hashable, tokens: Sequence[int], length: int | None = None
    ) -> None:
        """`PrefixTree.store`."""
        with self._teller.calling("store", self._states[state], key, list(tokens), length):
            super().store(state, key, tokens, length)

    def clear(self) -> None:
        """`PrefixTree.clear`."""
        with self._teller.calling("clear"):
            super().clear()


class ToldRunner(TorchRunner):
    """The plain path, of which every step is told first."""

    def __init__(self, model: StackModule, pool: ToldPool, teller: Teller) -> None:
        super().__init__(model, pool)
        self._names, self._teller = pool.names, teller

    def run(self, feed: Feed, select: Sequence[int]) -> Tensor:
        """`TorchRunner.run`, by all."""
        told = {
            "ids": list(feed.ids),
            "states": [self._names[state] for state in feed.states],
            "lengths": list(feed.lengths),
            "limits": list(feed.limits),
            "coarse": list(feed.coarse),
            "select": list(select),
        }
        with self._teller.step(told):
            return super().run(feed, select)


class Echo:
    """The calls of another process's engine, repeated on a pool and a tree of this one's."""

    def __init__(self, pool: StatePool) -> None:
        self.pool, self.tree = pool, PrefixTree(pool)
        self.states: dict[int, RequestState] = {}

    def call(self, what: str, *args: Any) -> None:
        """One call; where it found no room there, it finds none here."""
        try:
            self._call(what, *args)
        except OutOfState:
            return

    def _call(self, what: str, *args: Any) -> None:
        pool, tree, states = self.pool, self.tree, self.states
        match what, args:
            case "clear", ():
                tree.clear()
            case "open", (name,):
                states[name] = pool.open()
            case "fork", (name, of):
                states[name] = pool.fork(states[of])
            case "free", (None,):  # of one that did not come to be
                return
            case "free", (name,):
                pool.free(states.pop(name))
            case "reserve", (name, tokens):
                pool.reserve(states[name], tokens)
            case "advance", (name, tokens, undoable):
                pool.advance(states[name], tokens, undoable=undoable)
            case "snapshot", (name,):
                pool.snapshot(states[name])
            case "restore", (name, length):
                pool.restore(states[name], length)
            case "fill", (name, key, tokens, by):
                tree.fill(states[name], tuple(key), tokens, by)
            case "store", (name, key, tokens, length):
                tree.store(states[name], tuple(key), tokens, length)
            case _:
                raise ValueError(f"no call {what} with {len(args)} arguments")
