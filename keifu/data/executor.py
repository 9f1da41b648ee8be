"""Where steps run: in this process, in several, or on the machines of a Ray cluster.

An executor takes chunks of documents in order and gives their outcomes in the same order, with a
bounded number of chunks on their way. It knows nothing of files, reports or of what steps compare.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from keifu.core.errors import KeifuError
from keifu.data.document import Change, Document, Dropped
from keifu.data.step import CorpusStep, DocumentStep, Look, Step

Stage = Sequence[Step]


class Outcome(NamedTuple):
    """What became of a document in one stage, as far as it can be said of it alone."""

    document: Document
    step: int
    """The step that dropped it, or how many steps there are."""
    dropped: Dropped | None
    looks: tuple[bytes, ...]
    """What each corpus step before that saw."""


Chunk = Sequence[Document]
Work = Callable[[Chunk], list[Outcome]]


class Executor(AbstractContextManager["Executor"], Protocol):
    """Runs the stages of a pipeline."""

    def ordered(self, stage: int, chunks: Iterable[Chunk]) -> Iterator[list[Outcome]]:
        """The outcomes of each chunk in one stage, in order."""


def started(stage: Stage) -> Work:
    """The function that runs one stage's steps on a chunk, up to where others must be known."""
    parts: list[tuple[Change | None, Look | None]] = []
    for step in stage:
        if isinstance(step, CorpusStep):
            parts.append((None, step.look()))
        else:
            assert isinstance(step, DocumentStep)
            parts.append((step.start(), None))

    def one(document: Document) -> Outcome:
        looks: list[bytes] = []
        for number, (change, look) in enumerate(parts):
            if look is not None:
                looks.append(look(document))
            elif change is not None:
                found = change(document)
                if isinstance(found, Dropped):
                    return Outcome(document, number, found, tuple(looks))
                document = found
        return Outcome(document, len(parts), None, tuple(looks))

    return lambda chunk: [one(document) for document in chunk]


class Here(Executor):
    """In this process."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._works = [started(stage) for stage in stages]

    def ordered(self, stage: int, chunks: Iterable[Chunk]) -> Iterator[list[Outcome]]:
        """One chunk after another."""
        return map(self._works[stage], chunks)

    def __exit__(self, *raised: object) -> None:
        """Nothing to close."""


_works: list[Work] = []
"""In a worker process: the stages' functions."""


def _start(stages: Sequence[Stage]) -> None:
    _works[:] = [started(stage) for stage in stages]


def _run(stage: int, chunk: Chunk) -> list[Outcome]:
    return _works[stage](chunk)


class Processes(Executor):
    """In processes of this machine."""

    def __init__(self, stages: Sequence[Stage], count: int) -> None:
        for stage in stages:
            started(stage)  # a step that cannot start says so here, once, in one line
        context = multiprocessing.get_context("spawn")
        self._count = count
        self._pool = ProcessPoolExecutor(count, context, _start, (stages,))

    def ordered(self, stage: int, chunks: Iterable[Chunk]) -> Iterator[list[Outcome]]:
        """Twice as many chunks as processes are on their way."""
        waiting: deque[Future[list[Outcome]]] = deque()
        try:
            for chunk in chunks:
                waiting.append(self._pool.submit(_run, stage, chunk))
                if len(waiting) > 2 * self._count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise KeifuError(
                "a process that cleans documents was ended from outside (too little memory?): run "
                "it again with fewer --processes, it goes on where it stopped"
            ) from None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits for what runs, drops what waits."""
        self._pool.shutdown(cancel_futures=True)


class Ray(Executor):
    """On a Ray cluster: an actor a processor, `count` in all."""

    def __init__(self, stages: Sequence[Stage], count: int) -> None:
        try:
            import ray
        except ModuleNotFoundError as missing:
            if missing.name != "ray":
                raise
            raise KeifuError("a Ray cluster needs Ray: pip install 'keifu[ray]'") from None
        self._ray: Any = ray
        self._mine = not ray.is_initialized()
        if self._mine:
            ray.init(log_to_driver=False, include_dashboard=False)
        worker = ray.remote(num_cpus=1)(_Worker)
        self._actors: list[Any] = [worker.remote(stages) for _ in range(count)]

    def ordered(self, stage: int, chunks: Iterable[Chunk]) -> Iterator[list[Outcome]]:
        """Chunks go to the actors in turn."""
        waiting: deque[Any] = deque()
        turns = itertools.cycle(self._actors)
        try:
            for chunk, actor in zip(chunks, turns, strict=False):
                waiting.append(actor.run.remote(stage, chunk))
                if len(waiting) > 2 * len(self._actors):
                    yield self._ray.get(waiting.popleft())
            while waiting:
                yield self._ray.get(waiting.popleft())
        except self._ray.exceptions.RayActorError as lost:
            raise KeifuError(f"an actor was lost: run it again, it goes on: {lost}") from None

    def __exit__(self, *raised: object) -> None:
        """Ends the actors, and Ray if it was started here."""
        for actor in self._actors:
            self._ray.kill(actor)
        if self._mine:
            self._ray.shutdown()


class _Worker:
    """An actor's state: the stages' functions."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.works = [started(stage) for stage in stages]

    def run(self, stage: int, chunk: Chunk) -> list[Outcome]:
        """One chunk in one stage."""
        return self.works[stage](chunk)
