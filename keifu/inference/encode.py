"""Encoding: rows of tokens in, one vector a row out, many requests' rows in one ragged batch.

One thread runs batches of about `BATCH` tokens, never padded. Each waiting request gives its share
of a batch, longest rows first, so that a short request does not wait for the end of a long one and
rows of a batch are of like lengths. A row's vector does not depend on who else is in its batch
beyond rounding, and results come in the order of the request.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.nn.masks import Landmarks
from keifu.nn.stack import StackModule
from keifu.nn.step import fresh_step

BATCH = 2048
"""Tokens of a batch: enough for whole matrix products, few enough for the second cache."""

Progress = Callable[[int, int], None]
"""Rows done, rows in all; called by the thread that runs them."""


@dataclass(eq=False)
class Job:
    """One request while it waits: its rows, and those that are still to run, longest first."""

    rows: Sequence[Sequence[int]]
    prefix: int
    result: Future[Tensor]
    progress: Progress | None
    left: deque[int]
    made: list[Tensor | None]
    done: int = 0

    def take(self, share: int) -> list[int]:
        """Rows of about `share` tokens, at least one."""
        taken, tokens = [self.left.popleft()], 0
        tokens += len(self.rows[taken[0]])
        while self.left and tokens + len(self.rows[self.left[0]]) <= share:
            tokens += len(self.rows[self.left[0]])
            taken.append(self.left.popleft())
        return taken


class Encodings:
    """Runs the rows of requests through a stack and a head over rows.

    Args:
        head: (tokens, width), step -> (rows, ...): `nn.sentence.Sentence` and its kind.
        context: most tokens of a row.
        compute: what branches compute in; None is float32.
        vocab: token ids are below it.
    """

    def __init__(
        self,
        model: StackModule,
        head: nn.Module,
        *,
        context: int,
        vocab: int,
        compute: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        batch: int = BATCH,
    ) -> None:
        self.model, self.head, self.context, self.vocab = model, head, context, vocab
        self.compute, self.device, self.batch = compute, torch.device(device), batch
        self._jobs: deque[Job] = deque()
        self._wake = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def submit(
        self,
        rows: Sequence[Sequence[int]],
        *,
        prefix: int = 0,
        progress: Progress | None = None,
    ) -> Future[Tensor]:
        """Queue rows; the future's result is (rows, width) float32. Cancelling it stops the work.

        Args:
            prefix: leading tokens of every row that are an instruction, not the text.

        Raises:
            ContextLengthError: a row does not fit.
        """
        for row in rows:
            if not row:
                raise KeifuError("a text has no tokens: give some text")
            if len(row) > self.context:
                raise ContextLengthError(len(row), self.context)
            if not (min(row) >= 0 and max(row) < self.vocab):
                wrong = next(t for t in row if not 0 <= t < self.vocab)
                raise KeifuError(f"token id {wrong} is not in the vocabulary of {self.vocab}")
        order = deque(sorted(range(len(rows)), key=lambda i: -len(rows[i])))
        job = Job(rows, prefix, Future(), progress, order, [None] * len(rows))
        if not rows:
            job.result.set_result(torch.zeros(0, 0))
            return job.result
        with self._wake:
            if self._stopped:
                raise KeifuError("the model is closed")
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="keifu", daemon=True)
                self._thread.start()
            self._wake.notify()
        return job.result

    def close(self) -> None:
        """Stop; what waits ends as cancelled."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _loop(self) -> None:
        with torch.inference_mode():
            while True:
                with self._wake:
                    while not (self._stopped or self._jobs):
                        self._wake.wait()
                    if self._stopped:
                        break
                    jobs = list(self._jobs)
                self._step(jobs)
        for job in self._jobs:
            job.result.cancel()

    def _step(self, jobs: list[Job]) -> None:
        """One batch: of every job that waits its share."""
        jobs = [job for job in jobs if not job.result.cancelled()]
        taken: list[tuple[Job, int]] = []
        tokens = 0
        for number, job in enumerate(jobs):
            if tokens >= self.batch:
                break
            share = (self.batch - tokens) // (len(jobs) - number)
            rows = job.take(share)
            taken += [(job, row) for row in rows]
            tokens += sum(len(job.rows[row]) for row in rows)
        taken.sort(key=lambda at: -len(at[0].rows[at[1]]))
        try:
            self._keep(taken, self._run(taken))
        except Exception as error:  # handed to those who asked
            for job in {id(job): job for job, _ in taken}.values():
                job.left.clear()
                if not job.result.cancelled():
                    job.result.set_exception(error)
        with self._wake:
            # Whoever was served goes behind those who were not.
            served = {id(job) for job, _ in taken}
            waiting = [j for j in self._jobs if j.left and not j.result.cancelled()]
            self._jobs = deque(sorted(waiting, key=lambda job: id(job) in served))

    def _run(self, taken: Sequence[tuple[Job, int]]) -> Tensor:
        """(rows, width) of the rows of one batch."""
        rows = [job.rows[row] for job, row in taken]
        ids = torch.tensor([token for row in rows for token in row], device=self.device)
        step = replace(fresh_step([len(row) for row in rows], self.device), compute=self.compute)
        nothing = torch.zeros(0, dtype=torch.long, device=self.device)
        hidden = self.model.run(ids, step, select=nothing).hidden
        landmarks = tuple(Landmarks(prefix=job.prefix) for job, _ in taken)
        found: Tensor = self.head(hidden, replace(step, landmarks=landmarks)).float().cpu()
        return found

    def _keep(self, taken: Sequence[tuple[Job, int]], vectors: Tensor) -> None:
        """Give the vectors to their jobs; a job with all of them is done."""
        for (job, row), vector in zip(taken, vectors, strict=True):
            job.made[row] = vector
            job.done += 1
        for job in {id(job): job for job, _ in taken}.values():
            if job.progress is not None:
                job.progress(job.done, len(job.rows))
            if not job.left and not job.result.cancelled():
                job.result.set_result(torch.stack([v for v in job.made if v is not None]))
