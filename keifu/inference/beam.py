"""Beam search over one request: k outputs in lockstep, forked and freed as beams change.

Scores are sums of log-probabilities over length^penalty, or over Wu et al.'s form of it (2016,
section 7, without coverage); finished and running hypotheses are compared as Hugging Face's
`generate` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.inference.meter import Meter
from keifu.inference.sampling import NEVER
from keifu.inference.sequence import Sequence as Output
from keifu.nn.pages import OutOfState
from keifu.nn.state import RequestState, StatePool

Forward = Callable[[list[Output], list[int], Sequence[int]], Tensor]


@dataclass
class _Beam:
    output: Output
    score: float
    logits: list[Tensor]
    """The logits row that chose each generated token, for reports."""


class Beams:
    """The search of one request; `step` until it says that it is done."""

    def __init__(self, output: Output, pool: StatePool, forward: Forward, meter: Meter) -> None:
        self.job, self.pool, self.forward, self.meter = output.job, pool, forward, meter
        self.width, self.tokenizer = output.job.sampling.beams, output.tokenizer
        self.running = [_Beam(output, 0.0, [])]
        self.finished: list[tuple[float, list[int], list[Tensor]]] = []

    @property
    def first(self) -> Output:
        """The best running output."""
        return self.running[0].output

    def step(self) -> bool:
        """One token further; True once the best hypotheses were sent."""
        if self.job.stream.cancelled:
            self.cancel()
            return True
        first = self.first
        assert first.state is not None
        if first.unread:
            return False
        while first.pending > 1:
            n = min(first.pending - 1, 512)
            self.pool.reserve(first.state, n)
            self.forward([first], [n], [])
        for beam in self.running:
            assert beam.output.state is not None
            self.pool.reserve(beam.output.state, 1)
        outputs = [b.output for b in self.running]
        # Kept for reports: a runner's logits are its own until the next step.
        logits = self.forward(outputs, [1] * len(outputs), range(len(outputs))).clone()
        self._advance(logits)
        done = self._done()
        if done:
            self._send()
        return done

    def _advance(self, logits: Tensor) -> None:
        """Rank all continuations; the best ending ones finish, the best others go on."""
        log = logits.log_softmax(-1)
        log = torch.stack([b.output.allowed(r) for b, r in zip(self.running, log, strict=True)])
        scores = log + torch.tensor([[b.score] for b in self.running])
        vocab = log.shape[1]
        ends = self.job.end_ids
        count = min(max(2, 1 + len(ends)) * self.width, scores.numel())
        best, flat = scores.flatten().topk(count)
        length = self.running[0].output.generated + 1
        last = self.running[0].output.length + 1 >= self.job.limit
        chosen: list[tuple[float, int, int]] = []
        for rank, (score, at) in enumerate(zip(best.tolist(), flat.tolist(), strict=True)):
            parent, token = divmod(at, vocab)
            if score == NEVER:
                break
            if token in ends or last:
                if rank < self.width or (last and len(chosen) < self.width):
                    self._finish(parent, token, score, length, logits[parent])
            elif len(chosen) < self.width:
                chosen.append((score, parent, token))
        if not (chosen or self.finished):
            raise KeifuError("no token may follow: the rules and settings forbid all of them")
        self._go_on([] if last else chosen, logits)

    def _finish(self, parent: int, token: int, score: float, length: int, row: Tensor) -> None:
        beam = self.running[parent]
        final = self.job.sampling.normalised(score, length)
        generated = [*beam.output.tokens[len(self.job.prompt) :], token]
        self.finished.append((final, generated, [*beam.logits, row]))
        self.finished.sort(key=lambda f: -f[0])
        del self.finished[self.width :]

    def _go_on(self, chosen: list[tuple[float, int, int]], logits: Tensor) -> None:
        """Replace the running beams by the chosen continuations of them."""
        old, new = self.running, list[_Beam]()
        parents, used = {parent for _, parent, _ in chosen}, set[int]()
        for index, beam in enumerate(old):
            if index not in parents and beam.output.state is not None:
                self.pool.free(beam.output.state)
                beam.output.state = None
        for score, parent, token in chosen:
            source = old[parent].output
            assert source.state is not None
            output = Output(self.job, 0, self.tokenizer)
            output.tokens = [*source.tokens, token]
            output.follow(source, token)
            output.started = source.started
            output.state = self._fork(source.state, new) if parent in used else source.state
            used.add(parent)
            new.append(_Beam(output, score, [*old[parent].logits, logits[parent]]))
        self.running = new

    def _fork(self, state: RequestState, made: list[_Beam]) -> RequestState:
        """A fork; where there is no room, the forks made before it are given back first."""
        try:
            return self.pool.fork(state)
        except OutOfState:
            running = {id(beam.output.state) for beam in self.running}
            for beam in made:
                if beam.output.state is not None and id(beam.output.state) not in running:
                    self.pool.free(beam.output.state)
            raise

    def _done(self) -> bool:
        """Whether no running beam can still beat the worst of a full set of finished ones."""
        if not self.running:
            return True
        if len(self.finished) < self.width:
            return False
        sampling = self.job.sampling
        if sampling.early_stopping is True:
            return True
        length = self.first.generated
        if sampling.early_stopping == "never" and sampling.length_penalty > 0:
            length = self.job.limit - len(self.job.prompt)
        best = sampling.normalised(max(b.score for b in self.running), length)
        return best <= self.finished[-1][0]

    def _send(self) -> None:
        """Send the n best hypotheses and close."""
        for index, (_, tokens, rows) in enumerate(self.finished[: self.job.sampling.n]):
            output = Output(self.job, index, self.tokenizer)
            for token, row in zip(tokens, rows, strict=True):
                delta = output.accept(token, row)
                self.meter.sent(output, delta, live=False)
                self.job.stream.put(delta)
                if delta.finish:
                    break
            else:
                self.job.stream.put(output.end("stop"))
        self._free()
        self.job.stream.close()

    def _free(self) -> None:
        for beam in self.running:
            if beam.output.state is not None:
                self.pool.free(beam.output.state)
                beam.output.state = None
        self.running = []

    def again(self) -> Output:
        """Give everything back; the same request, to be searched from its beginning."""
        output = Output(self.job, 0, self.tokenizer)
        output.started = self.first.started
        self._free()
        return output

    def cancel(self) -> None:
        """End as cancelled."""
        output = self.running[0].output if self.running else None
        self._free()
        if output is not None:
            self.job.stream.put(output.end("cancelled"))
        self.job.stream.close()

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self._free()
        self.job.stream.close(error)
