"""A stream of deltas that one thread writes and anyone reads, blocking or not."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator

from keifu.inference.request import (
    Choice,
    Completion,
    Delta,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)


class Stream:
    """The output of one request while it is made.

    The producer calls `put`, then `close` (with an exception if it failed). The consumer iterates
    (`for` or `async for`) or takes the whole `result()` / `await aresult()`; `cancel()` asks the
    producer to stop, which it does within one step and closes with finish "cancelled".
    """

    def __init__(self, cancel: Callable[[], None] | None = None) -> None:
        self._queue: queue.SimpleQueue[Delta | BaseException | None] = queue.SimpleQueue()
        self.on_cancel = cancel
        self._wake: Callable[[], None] | None = None
        self.cancelled = False
        self._whole: Completion | None = None
        self._patient = False
        self._rest: list[Delta] = []
        """What came since somebody waits for the whole: nobody is woken for it."""

    def put(self, delta: Delta) -> None:
        """Producer: hand over the next piece."""
        if self._patient:
            self._rest.append(delta)
            return
        self._queue.put(delta)
        if self._wake:
            self._wake()

    def close(self, error: BaseException | None = None) -> None:
        """Producer: no more pieces; an error is raised to the consumer."""
        self._queue.put(error)
        if self._wake:
            self._wake()

    def cancel(self) -> None:
        """Consumer: stop generating. Safe to call twice, from any thread, and after the end."""
        if not self.cancelled:
            self.cancelled = True
            if self.on_cancel:
                self.on_cancel()

    def __iter__(self) -> Iterator[Delta]:
        while True:
            item = self._queue.get()
            if item is None or isinstance(item, BaseException):
                self._queue.put(item)  # whoever reads again finds the end, and does not wait
                if item is None:
                    return
                raise item
            yield item

    async def __aiter__(self) -> AsyncIterator[Delta]:
        ready, loop, told = asyncio.Event(), asyncio.get_running_loop(), False

        def wake() -> None:
            nonlocal told
            if not (told or loop.is_closed()):  # told once, it takes all that is there
                told = True
                loop.call_soon_threadsafe(ready.set)

        self._wake = wake
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                await ready.wait()
                ready.clear()
                told = False
                continue
            if item is None or isinstance(item, BaseException):
                self._queue.put(item)  # whoever reads again finds the end, and does not wait
                if item is None:
                    return
                raise item
            yield item

    def result(self) -> Completion:
        """Wait for the end and return the whole."""
        if self._whole is None:
            self._patient = True
            self._whole = collect([*self, *self._rest])
        return self._whole

    async def aresult(self) -> Completion:
        """The same without blocking the event loop."""
        if self._whole is None:
            self._patient = True
            self._whole = collect([delta async for delta in self] + self._rest)
        return self._whole


def collect(deltas: list[Delta]) -> Completion:
    """Join the pieces of all outputs into one Completion; usage counts a shared prompt once."""
    count = 1 + max((d.index for d in deltas), default=0)
    choices, usages, timings = [], [], Timings()
    prompt: tuple[TokenLogprob, ...] | None = None
    for index in range(count):
        mine = [d for d in deltas if d.index == index]
        last = mine[-1] if mine else Delta()
        tools: tuple[ToolCall, ...] = tuple(t for d in mine for t in d.tool_calls)
        choices.append(
            Choice(
                text="".join(d.text for d in mine),
                tokens=tuple(t for d in mine for t in d.tokens),
                finish=last.finish or "stop",
                stop=last.stop,
                logprobs=tuple(p for d in mine for p in d.logprobs),
                tool_calls=tools,
            )
        )
        usages.append(last.usage or Usage())
        timings = last.timings or timings
        prompt = next((d.prompt_logprobs for d in mine if d.prompt_logprobs is not None), prompt)
    usage = Usage(
        prompt_tokens=usages[0].prompt_tokens,
        completion_tokens=sum(u.completion_tokens for u in usages),
        cached_tokens=usages[0].cached_tokens,
        drafted_tokens=sum(u.drafted_tokens for u in usages),
        accepted_tokens=sum(u.accepted_tokens for u in usages),
    )
    return Completion(tuple(choices), usage, timings, prompt)
