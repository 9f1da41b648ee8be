"""Running generations for one request: a place in the queue, a deadline, cancellation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from keifu.inference.request import Delta
from keifu.inference.stream import Stream
from keifu.server.errors import ApiError
from keifu.server.gate import Gate
from keifu.server.settings import Limits
from keifu.server.tally import Tally, Watch

T = TypeVar("T")


@dataclass(frozen=True)
class Start:
    """A generation that can be begun: `make(prompt, **options)`."""

    make: Callable[..., Stream]
    prompt: Any
    options: Mapping[str, Any]

    def __call__(self) -> Stream:
        """Submit it."""
        return self.make(self.prompt, **self.options)


@dataclass
class Call:
    """What one request carries through the server besides its body."""

    id: str
    gate: Gate
    limits: Limits
    tally: Tally
    """Of the model that is asked."""
    deadline: float
    """In the event loop's time."""
    ignored: list[str] = field(default_factory=list)
    arrived: float = field(default_factory=time.monotonic)

    def watch(self, options: Mapping[str, Any]) -> Watch:
        """Counts one generation, or what else is asked of the model."""
        return Watch(self.tally, self.arrived, options)


async def in_thread(work: Callable[[], T]) -> T:
    """Run what may take a while (templates, tokenizing) off the event loop."""
    return await asyncio.to_thread(work)


async def _begin(start: Start) -> Stream:
    """Submit a request in a thread; if nobody waits for it any more, stop what it started."""
    task = asyncio.ensure_future(asyncio.to_thread(start))

    def stop(done: asyncio.Future[Stream]) -> None:
        if not done.cancelled() and done.exception() is None:
            done.result().cancel()

    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(stop)
        raise


async def one(call: Call, start: Start) -> AsyncGenerator[Delta, None]:
    """The deltas of one prompt; past the deadline it ends early, with finish "length"."""
    loop = asyncio.get_running_loop()
    with call.watch(start.options) as watch:
        async with call.gate.place(call.deadline):
            watch.placed()
            stream = await _begin(start)
            watch.began()
            timer = loop.call_at(call.deadline, stream.cancel)
            try:
                async for delta in stream:
                    if delta.finish == "error":
                        raise ApiError(500, "the model failed while it generated")
                    late = delta.finish == "cancelled"
                    told = replace(delta, finish="length") if late else delta
                    watch.take(told)
                    yield told
            finally:
                timer.cancel()
                stream.cancel()


async def many(call: Call, starts: Sequence[Start]) -> AsyncGenerator[tuple[int, Delta], None]:
    """The deltas of several prompts as they come, each with its prompt's number.

    At most `parallel` of them wait for a place at a time, so other requests get theirs between.
    """
    pending = iter(enumerate(starts))
    ready: asyncio.Queue[tuple[int, Delta] | None] = asyncio.Queue()

    async def work() -> None:
        for index, start in pending:
            async with aclosing(one(call, start)) as deltas:
                async for delta in deltas:
                    ready.put_nowait((index, delta))

    async def run() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(call.limits.parallel, len(starts))):
                    group.create_task(work())
        finally:
            ready.put_nowait(None)

    runner = asyncio.create_task(run())
    try:
        while (item := await ready.get()) is not None:
            yield item
        try:
            await runner
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
    finally:
        runner.cancel()
        await asyncio.wait({runner})
