"""Admission: how many requests are in the house, how many run, and what the others are told."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from keifu.server.errors import ApiError
from keifu.server.settings import Limits


class Gate:
    """A bounded queue before a few running places, first come first served.

    A request is admitted or refused at once, before its body is read. A generation then takes one
    of `parallel` places; a batch of prompts takes a place for each, so it cannot hold them all.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.draining = False
        self.admitted = 0
        self.running = 0
        self.total = self.cancelled = self.failed = 0
        """Requests that were let in, whose client left, whose answer was a bug of ours."""
        self.rejected = Counter[str]()
        """Requests that were answered with another error, by reason."""
        self._seconds = 1.0
        self._places = asyncio.Semaphore(limits.parallel)

    @property
    def refused(self) -> int:
        """Requests for which there was no place."""
        return self.rejected["queue_full"]

    def answered(self, error: ApiError) -> None:
        """An error was the answer."""
        if error.status == 500:
            self.failed += 1
        else:
            self.rejected[error.reason] += 1

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold one of `parallel + queue` places in the house; 429 or 503 if there is none."""
        if self.draining:
            raise ApiError(503, "the server is stopping", code="overloaded", retry_after=5)
        if self.admitted >= self.limits.parallel + self.limits.queue:
            wait = self._seconds * self.limits.queue / self.limits.parallel
            message = f"{self.admitted} requests are waiting or running: try again later"
            again = min(60, max(1, round(wait)))
            raise ApiError(429, message, code="queue_full", retry_after=again)
        self.admitted += 1
        self.total += 1
        try:
            yield
        finally:
            self.admitted -= 1

    @asynccontextmanager
    async def place(self, deadline: float) -> AsyncIterator[None]:
        """Wait for a running place until `deadline` (event-loop time), then 503."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._places.acquire()
        except TimeoutError:
            message = "no place came free before the request's deadline"
            raise ApiError(503, message, code="overloaded", retry_after=10) from None
        began = time.monotonic()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._places.release()
            self._seconds += 0.1 * (time.monotonic() - began - self._seconds)
