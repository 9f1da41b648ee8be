"""Who waits, who runs and who gives way: the queue of one engine over its pool of state."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

import torch

from keifu.core.errors import KeifuError
from keifu.inference.beam import Beams
from keifu.inference.meter import Meter
from keifu.inference.request import Delta
from keifu.inference.sequence import Sequence as Output
from keifu.nn.pages import OutOfState
from keifu.nn.state import RequestState, StatePool

PATIENCE = 64
"""Later ones let in before an output that waits; after so many it is the next itself."""

STARVED = (
    "the machine has no memory left for this request: try later, send a shorter one, or lower "
    "--parallel, --ctx or --max-memory"
)


def starved(error: BaseException) -> bool:
    """Whether an error says that memory was refused; a processor's is a plain RuntimeError."""
    refused = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return refused or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def told(error: BaseException) -> BaseException:
    """An error as the request's owner hears it."""
    return OutOfState(STARVED) if starved(error) else error


class Admission:
    """The outputs of all requests.

    Of those that wait, the lowest priority number is the next, then those that ran before, then
    whose owner (`cache_salt`) was let in longest ago, then who came first. The next one waits for
    room, and nobody passes it meanwhile: a large request is not starved by small ones.

    Args:
        parallel: requests that run at once.
        search: makes the beam search of an output that asks for one.
        store: keeps what an output has read, before its state goes.
    """

    def __init__(
        self,
        pool: StatePool,
        parallel: int,
        search: Callable[[Output, Meter], Beams],
        store: Callable[[Output], None],
    ) -> None:
        self.pool, self.parallel, self._search, self._store = pool, parallel, search, store
        self.meter = Meter()
        self.waiting: deque[Output] = deque()
        self.running: list[Output] = []
        self.searches: list[Beams] = []
        self._turns: dict[str, int] = {}
        """When each owner with outputs here was last let in, by count."""
        self._turn = 0

    def __bool__(self) -> bool:
        return bool(self.waiting or self.running or self.searches)

    def unread(self) -> Iterator[Output]:
        """Admitted outputs whose sources are still to be encoded, in the order they came."""
        yield from (o for o in self.running if o.unread)
        yield from (s.first for s in self.searches if s.first.unread)

    def _next(self) -> Output:
        """Who of those that wait has the next turn."""

        def order(output: Output) -> tuple[bool, int, bool, int]:
            turn, sampling = output.started == 0, output.job.sampling
            owner = self._turns.get(sampling.cache_salt, 0)
            return output.passed < PATIENCE, sampling.priority, turn, owner

        # A copy: others add to it meanwhile. Of equals, the first.
        return min(list(self.waiting), key=order)

    def _leave(self, output: Output) -> None:
        """Take the next one out of those that wait; those who came before it have been passed."""
        self.waiting.remove(output)
        self._turn += 1
        self._turns[output.job.sampling.cache_salt] = self._turn
        if len(self._turns) > 4096:
            self._turns = dict(sorted(self._turns.items(), key=lambda t: t[1])[2048:])
        for other in list(self.waiting):
            other.passed += other.job.arrived < output.job.arrived

    def admit(self) -> None:
        """Let in what fits, in order."""
        while self.waiting and len(self.running) + len(self.searches) < self.parallel:
            output = self._next()
            if output.postponed and (self.running or self.searches):
                return  # let in now, two searches would take turns at failing
            if output.pending > self.pool.free_tokens and self.running:
                return
            try:
                output.state = self._opened(output)
            except OutOfState as full:  # others hold all slots, pages or the memories' places
                if self.running or self.searches:
                    return
                self._leave(output)
                self.fail(output, full)
                continue
            except KeifuError as gone:
                self._leave(output)
                self.fail(output, gone)
                continue
            output.memories = output.job.memories
            self._leave(output)
            if not output.started:
                output.started = time.monotonic()
            if output.job.sampling.beams > 1:
                self.searches.append(self._search(output, self.meter))
            else:
                self.running.append(output)

    def _opened(self, output: Output) -> RequestState:
        """Its state: empty, or the past that it continues."""
        past = output.job.past
        if past is None or past.source is not None:
            return self.pool.open(output.job.places)
        if past.state is None:
            raise KeifuError("the past of a waiting request was released: read it again")
        return self.pool.fork(past.state)

    def reserve(self, outputs: list[Output], count: Callable[[Output], int]) -> None:
        """Make room for a step; where there is none, the youngest of the least urgent gives way."""
        for output in outputs:
            while output in self.running and output.state is not None:
                try:
                    self.pool.reserve(output.state, count(output))
                    break
                except OutOfState:
                    if self.running == [output]:
                        raise
                    last = max(self.running, key=lambda o: (o.job.sampling.priority, o.job.arrived))
                    self.drop(last)
                    self.meter.preempted += 1
                    self.waiting.appendleft(last)

    def run(
        self,
        outputs: list[Output],
        count: Callable[[Output], int],
        work: Callable[[list[Output]], None],
    ) -> None:
        """Run a step with room for what `count` says; a fault ends only the request it is of.

        Which one of a batch that is shows when each runs alone. Recurrent state may have taken in a
        part of the step that failed, so those that have such state are read afresh, which is alone.
        Who finds the machine without memory beside others gives way once, until they have left.
        """
        try:
            self.reserve(outputs, count)
            outputs = [o for o in outputs if o in self.running]
            if outputs:
                work(outputs)
        except Exception as error:
            if len(outputs) == 1:
                (output,) = outputs
                alone = len(self.running) + len(self.searches) == 1
                if not starved(error) or alone or output.postponed:
                    self.fail(output, error)
                else:
                    output.postponed = True
                    self._again(output)
                return
            for output in outputs:
                if output in self.running and output.pending and self.pool.fixed:
                    self._again(output)
                elif output in self.running and output.pending:
                    self.run([output], count, work)

    def _again(self, output: Output) -> None:
        """Let an output wait, and be read from the beginning."""
        self.drop(output, store=False)
        self.meter.preempted += 1
        self.waiting.appendleft(output)

    def drop(self, output: Output, *, store: bool = True) -> None:
        """Take an output out of the running ones and give its state back."""
        if output in self.running:
            self.running.remove(output)
        output.memories, output.reading = {}, None
        if output.state is not None:
            if store:
                self._store(output)
            self.pool.free(output.state)
            output.state = None

    def search(self) -> None:
        """One step of every beam search."""
        for search in list(self.searches):
            try:
                done = search.step()
            except OutOfState:
                self.postpone(search)
                continue
            except Exception as error:
                search.fail(told(error))
                done = True
            if done:
                self.searches.remove(search)

    def postpone(self, search: Beams) -> None:
        """Let a search that finds no room begin again when others have left; alone it fails."""
        self.searches.remove(search)
        if self.running or self.searches:
            output = search.again()
            output.postponed = True
            self.meter.preempted += 1
            self.waiting.appendleft(output)
            return
        search.fail(
            KeifuError(
                f"a search with {search.width} beams finds no room in the state budget: ask for "
                "fewer beams or fewer tokens, or raise --max-memory"
            )
        )

    def send(self, output: Output, delta: Delta) -> None:
        """What an output goes on with, or ends with."""
        if delta.finish:
            self.finish(output, delta)
        else:
            self.meter.sent(output, delta)
            output.job.stream.put(delta)

    def finish(self, output: Output, delta: Delta) -> None:
        """Send the last delta; the stream closes with the request's last output."""
        if output.job.keep and output.index == 0 and delta.finish != "cancelled":
            output.job.keep(output)
        self.drop(output)
        if output in self.waiting:
            self.waiting.remove(output)
        job = output.job
        self.meter.sent(output, delta)
        job.stream.put(delta)
        if not any(o.job is job for o in (*self.running, *self.waiting)):
            job.stream.close()

    def fail(self, output: Output, error: BaseException) -> None:
        """End a request with an error."""
        error = told(error)
        for search in self.searches:
            if search.first is output:
                self.searches.remove(search)
                search.fail(error)
                return
        self.drop(output, store=False)
        output.job.stream.close(error)

    def fail_all(self, error: BaseException) -> None:
        """End every request with an error."""
        while self.searches:
            self.searches.pop().fail(told(error))
        for output in list(self.running):
            self.fail(output, error)
        while self.waiting:
            self.fail(self.waiting.popleft(), error)

    def close(self) -> None:
        """End everything as cancelled."""
        for output in [*self.running, *self.waiting]:
            self.finish(output, output.end("cancelled"))
        for search in self.searches:
            search.cancel()
