"""The first of several processes that run one model: it tells the others every call and step."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist

from keifu.core.errors import KeifuError
from keifu.inference.crew import Crew, Echo, Lost, ToldPool, ToldRunner, ToldTree
from keifu.inference.radix import PrefixTree
from keifu.inference.runner import Runner, step_of
from keifu.nn.stack import StackModule
from keifu.nn.state import StatePool

LARGEST = 1 << 30
"""Most bytes of one message."""


class Line:
    """Messages from the first process to all others: JSON, over a group of its own."""

    def __init__(self, group: dist.ProcessGroup, rank: int) -> None:
        self._group, self._first = group, rank == 0

    def send(self, told: Mapping[str, Any]) -> None:
        """Tell the others."""
        raw = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)
        dist.broadcast(torch.tensor([len(raw)]), 0, group=self._group)
        dist.broadcast(raw, 0, group=self._group)

    def receive(self) -> dict[str, Any]:
        """What the first process tells next."""
        size = torch.zeros(1, dtype=torch.long)
        dist.broadcast(size, 0, group=self._group)
        if not 0 < int(size) <= LARGEST:
            raise ValueError(f"a message of {int(size)} bytes")
        raw = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(raw, 0, group=self._group)
        found: dict[str, Any] = json.loads(bytes(raw.tolist()))
        return found


class Leader(Crew):
    """The first process. Any error in a step, or of a line to another, is the end of all.

    Args:
        patience: seconds after which a process that says nothing is given up.
        gone: ends the other processes and says why one of them ended, if that is known.
    """

    def __init__(self, line: Line, size: int, *, patience: float, gone: Callable[[], str]) -> None:
        self.line, self.size, self._gone = line, size, gone
        self._lock, self._calls = threading.RLock(), list[Any]()
        self._losing = threading.Lock()
        self._depth, self._last, self._closed = 0, time.monotonic(), threading.Event()
        beat = threading.Thread(target=self._beat, args=(patience / 4,), daemon=True)
        beat.start()

    def pool(self, entries: Sequence[Mapping[str, Any]], **given: Any) -> StatePool:
        """A pool, and one like it in every process."""
        if given["places"] is not None:
            raise KeifuError("a model over several processes reads no memories")
        made = ToldPool(entries, self, **given)
        plain = {"budget": given["budget"], "slots": given["slots"]}
        self.send({"kind": "pool", **plain})
        return made

    def tree(self, pool: StatePool) -> PrefixTree:
        """A tree that all have."""
        assert isinstance(pool, ToldPool)
        return ToldTree(pool, self)

    def runner(self, model: StackModule, pool: StatePool) -> Runner:
        """Runs every step in all processes."""
        assert isinstance(pool, ToldPool)
        return ToldRunner(model, pool, self)

    @contextmanager
    def calling(self, what: str, *args: Any) -> Iterator[None]:
        """A call of the engine's, told with the next step."""
        with self._lock:
            if not self._depth:
                self._calls.append([what, *args])
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    @contextmanager
    def step(self, told: Mapping[str, Any]) -> Iterator[None]:
        """A step in all processes."""
        with self._lock:
            self.send({"kind": "run", **told})
            try:
                yield
            except Exception as error:
                raise self.lose(error) from error

    def send(self, told: Mapping[str, Any]) -> None:
        """Tell the others, with the calls since the last time.

        Raises:
            Lost: one of them is no more.
        """
        with self._lock:
            if self.lost is not None:
                raise self.lost
            calls, self._calls = self._calls, []
            try:
                self.line.send({**told, "calls": calls})
            except RuntimeError as error:
                raise self.lose(error) from error
            self._last = time.monotonic()

    def lose(self, error: BaseException) -> Lost:
        """What all requests end with from now on."""
        with self._losing:
            if self.lost is None:
                why = self._gone() or str(error).partition("\n")[0][:200]
                text = f"the model runs in {self.size} processes, and one has ended ({why})"
                self.lost = Lost(f"{text}: load it again")
            return self.lost

    def close(self) -> None:
        """Let the others go."""
        if self._closed.is_set():
            return
        self._closed.set()
        with self._lock, suppress(Lost):
            self.send({"kind": "end"})
        self._gone()
        dist.destroy_process_group()

    def _beat(self, every: float) -> None:
        """Nobody waits longer than this for a word."""
        while not self._closed.wait(every):
            with self._lock:
                if self._closed.is_set() or self.lost is not None:
                    return
                if time.monotonic() - self._last >= every:
                    try:
                        self.send({"kind": "idle"})
                    except Lost:
                        return


@torch.inference_mode()
def follow(
    line: Line,
    model: StackModule,
    *,
    dtype: torch.dtype,
    state: torch.dtype,
    device: torch.device | str,
) -> None:
    """Repeat the first process's calls and steps until it ends."""
    where, compute = torch.device(device), None if dtype == torch.float32 else dtype
    echo: Echo | None = None
    while (told := line.receive())["kind"] != "end":
        for what, *args in told["calls"]:
            assert echo is not None
            echo.call(what, *args)
        if told["kind"] == "pool":
            given = {"budget": told["budget"], "slots": told["slots"], "device": device}
            echo = Echo(StatePool(model.spec.entries(), dtype=state, **given))
        elif told["kind"] == "run":
            assert echo is not None
            lengths, states = told["lengths"], [echo.states[name] for name in told["states"]]
            step = step_of(
                states, lengths, told["limits"], where, compute, coarse=tuple(told["coarse"])
            )
            model.run(
                torch.tensor(told["ids"], device=where),
                step,
                echo.pool.handles(states, lengths),
                select=torch.tensor(told["select"], dtype=torch.long, device=where),
            )
