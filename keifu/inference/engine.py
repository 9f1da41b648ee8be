"""The engine: requests in, token events out. One for the terminal, the server and evaluation.

Each pass of the loop admits what fits, feeds one chunk of a prompt to each new request, one token
to every running one (all of those in a single step), and samples. A request's numbers do not
depend on its neighbours: prompts run alone in fixed chunks, and decoding goes through a runner
whose rows are independent.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.inference.beam import Beams
from keifu.inference.request import Delta, ParameterError, Sampling
from keifu.inference.runner import Runner, TorchRunner, step_of
from keifu.inference.sequence import Job, named, prompt_report
from keifu.inference.sequence import Sequence as Output
from keifu.inference.stream import Stream
from keifu.nn.pages import OutOfState
from keifu.nn.stack import StackModule
from keifu.nn.state import StatePool
from keifu.nn.step import fresh_step
from keifu.text.tokenizer import Tokenizer

CHUNK = 512
"""Prompt tokens a request reads at once; fixed, so that results do not depend on the load."""
SCORED = 128
"""The same where every position's logits are wanted: bounds their memory."""


class Engine:
    """Continuous batching over one model.

    Args:
        context: most tokens of a request's prompt and output.
        parallel: requests that run at once.
        budget: bytes of state for all of them.
        dtype: of per-token state, and what branches compute in (the residual stays float32).
        runners: fast paths, tried in order before the plain one.
    """

    def __init__(
        self,
        model: StackModule,
        tokenizer: Tokenizer,
        *,
        context: int,
        parallel: int = 4,
        budget: int = 1 << 30,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        end_ids: Sequence[int] = (),
        runners: Callable[[StackModule, StatePool, int], tuple[list[Runner], str]] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.parallel = model, tokenizer, parallel
        self.device, self.end_ids = torch.device(device), frozenset(end_ids)
        self.compute = None if dtype == torch.float32 else dtype
        # Forks of one request (n, beams) take slots of their own beyond `parallel`.
        slots = parallel + 64
        entries = model.spec.entries()
        self.pool = StatePool(entries, budget=budget, slots=slots, dtype=dtype, device=device)
        self.context = min(context, self.pool.capacity)
        plain: Runner = TorchRunner(model, self.pool)
        fast: list[Runner] = []
        self.why_plain = "not asked for"
        if runners is not None:
            fast, self.why_plain = runners(model, self.pool, self.context)
        self.runners = [*fast, plain]
        self._waiting: deque[Output] = deque()
        self._running: list[Output] = []
        self._beams: list[Beams] = []
        self._calls: deque[tuple[Callable[[], Any], list[Any], threading.Event]] = deque()
        self._wake = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        continues: bool = True,
        shown: frozenset[int] = frozenset(),
        memories: Mapping[str, Tensor] | None = None,
        stream: Stream | None = None,
    ) -> Stream:
        """Queue a request; its deltas come on the stream.

        Args:
            continues: whether the output continues the prompt's own text, so that a leading space
                is kept (false for an assistant's answer).
            shown: special tokens that appear in the text all the same (parts of tool calls).
            memories: what the model's cross mixers read, (length, width) by name.
            stream: where the deltas go, if not to a plain stream.

        Raises:
            ContextLengthError: the prompt, or the prompt with max_tokens, does not fit.
        """
        tokens = tuple(prompt)
        self._check(tokens, sampling)
        self.pool.check({name: m.shape[0] for name, m in (memories or {}).items()})
        room = self.context - len(tokens)
        wanted = room if sampling.max_tokens is None else sampling.max_tokens
        stream = stream or Stream()
        stream.on_cancel = self._notify
        job = Job(
            prompt=tokens,
            sampling=sampling,
            stream=stream,
            end_ids=frozenset() if sampling.ignore_eos else self.end_ids,
            limit=len(tokens) + wanted,
            continues=continues,
            shown=shown,
            memories=memories or {},
        )
        with self._wake:
            if self._stopped:
                raise KeifuError("the engine is closed")
            self._waiting.append(Output(job, 0, self.tokenizer))
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="keifu", daemon=True)
                self._thread.start()
            self._wake.notify()
        return stream

    def _check(self, tokens: Sequence[int], sampling: Sampling) -> None:
        vocab = self.tokenizer.vocab_size
        if not tokens:
            raise KeifuError("the prompt has no tokens: give some text")
        wrong = [t for t in tokens if not 0 <= t < vocab]
        if wrong:
            raise KeifuError(f"token id {wrong[0]} is not in the vocabulary of {vocab}")
        for name, ids in (("logit_bias", sampling.logit_bias), ("stop_ids", sampling.stop_ids)):
            if wrong := [t for t in ids if not 0 <= t < vocab]:
                raise ParameterError(name, wrong[0], f"token ids from 0 to {vocab - 1}")
        wanted = sampling.max_tokens if sampling.max_tokens is not None else 1
        if len(tokens) + wanted > self.context:
            raise ContextLengthError(len(tokens), self.context, sampling.max_tokens or 0)

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a function between steps, in the engine's thread, and return its value."""
        box, done = [None, None], threading.Event()
        with self._wake:
            if self._stopped:
                raise KeifuError("the engine is closed")
            self._calls.append((function, box, done))
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="keifu", daemon=True)
                self._thread.start()
            self._wake.notify()
        done.wait()
        if box[1] is not None:
            raise box[1]
        return box[0]

    def embed(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The mean of each prompt's last hidden states: (prompts, width) float32."""
        for prompt in prompts:
            self._check(prompt, Sampling(max_tokens=0))

        def run() -> Tensor:
            rows = []
            for prompt in prompts:
                step = fresh_step([len(prompt)], self.device)
                ids = torch.tensor(list(prompt), device=self.device)
                nothing = torch.zeros(0, dtype=torch.long, device=self.device)
                hidden = self.model.run(ids, step, select=nothing).hidden
                rows.append(hidden.float().mean(0).cpu())
            return torch.stack(rows)

        found: Tensor = self.call(run)
        return found

    def close(self) -> None:
        """Stop; what runs or waits ends as cancelled."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _loop(self) -> None:
        with torch.inference_mode():
            while True:
                with self._wake:
                    while not (self._stopped or self._busy() or self._calls):
                        self._wake.wait()
                    if self._stopped:
                        break
                    calls = [self._calls.popleft() for _ in range(len(self._calls))]
                for function, box, done in calls:
                    try:
                        box[0] = function()
                    except Exception as error:  # handed to the caller
                        box[1] = error
                    done.set()
                self.step()
            for output in [*self._running, *self._waiting]:
                self._finish(output, output.end("cancelled"))
            for beams in self._beams:
                beams.cancel()

    def _busy(self) -> bool:
        return bool(self._waiting or self._running or self._beams)

    def step(self) -> None:
        """One pass: cancel, admit, read prompts, decode."""
        for output in [*self._running, *self._waiting]:
            if output.job.stream.cancelled:
                self._finish(output, output.end("cancelled"))
        self._admit()
        for output in [o for o in self._running if o.pending > 1 or o.generated == 0]:
            if output in self._running:
                self._guard([output], self._prefill)
        ready = [o for o in self._running if o.pending == 1 and o.generated > 0]
        if ready:
            self._guard(ready, self._decode)
        for beams in list(self._beams):
            try:
                done = beams.step()
            except Exception as error:
                beams.fail(error)
                done = True
            if done:
                self._beams.remove(beams)

    def _admit(self) -> None:
        while self._waiting and len(self._running) + len(self._beams) < self.parallel:
            output = self._waiting[0]
            if output.pending > self.pool.free_tokens and self._running:
                return
            memories = output.job.memories
            try:
                output.state = self.pool.open({s: m.shape[0] for s, m in memories.items()})
            except OutOfState:  # others hold all slots or the memories' places
                return
            self._waiting.popleft()
            if not output.started:
                output.started = time.monotonic()
            if output.job.sampling.beams > 1:
                self._beams.append(Beams(output, self.pool, self._forward))
            else:
                self._running.append(output)

    def _guard(self, outputs: list[Output], work: Callable[[list[Output]], None]) -> None:
        """Run a step; a fault ends only the request that causes it."""
        try:
            self._reserve(outputs)
            outputs = [o for o in outputs if o in self._running]
            if outputs:
                work(outputs)
        except Exception as error:
            if len(outputs) > 1:
                for output in outputs:
                    if output in self._running and output.pending:
                        self._guard([output], work)
                return
            output = outputs[0]
            self._drop(output)
            output.job.stream.close(error)

    def _reserve(self, outputs: list[Output]) -> None:
        """Make room for the step, preempting the youngest others where there is none."""
        for output in outputs:
            while output in self._running and output.state is not None:
                try:
                    self.pool.reserve(output.state, self._count(output))
                    break
                except OutOfState:
                    others = [o for o in self._running if o is not output]
                    if not others:
                        raise
                    youngest = max(others, key=lambda o: o.job.arrived)
                    self._drop(youngest)
                    self._waiting.appendleft(youngest)

    def _count(self, output: Output) -> int:
        """Tokens that an output reads in its next step: up to the next multiple of the chunk."""
        scored = output.job.sampling.prompt_logprobs is not None
        chunk = SCORED if scored else CHUNK
        length = output.state.length if output.state else 0
        return min(output.pending, chunk - length % chunk)

    def _forward(self, outputs: list[Output], lengths: list[int], select: Sequence[int]) -> Tensor:
        """Run the next `lengths` tokens of each output; logits (len(select), vocab)."""
        states = [o.state for o in outputs if o.state is not None]
        ids: list[int] = []
        for output, state, n in zip(outputs, states, lengths, strict=True):
            ids += output.tokens[state.length : state.length + n]
        limits = [o.job.limit for o in outputs]
        memories = {
            name: tuple(o.job.memories[name] for o in outputs) for name in self.pool.memories
        }
        step = step_of(states, lengths, limits, self.device, self.compute, memories)
        runner = next(r for r in self.runners if r.takes(lengths))
        logits = runner.run(ids, step, states, select)
        for state, n in zip(states, lengths, strict=True):
            self.pool.advance(state, n)
        return logits

    def _prefill(self, outputs: list[Output]) -> None:
        """One chunk of one prompt; its last chunk also gives the first token."""
        (output,) = outputs
        assert output.state is not None
        job, n, start = output.job, self._count(output), output.state.length
        last = n == output.pending
        wanted = job.sampling.prompt_logprobs
        scores = wanted is not None and output.index == 0
        select = range(n) if scores else ([n - 1] if last else [])
        logits = self._forward([output], [n], list(select))
        if scores and wanted is not None:
            self._report(output, start, n, logits, wanted)
        if last:
            self._start(output, logits[-1])

    def _report(self, output: Output, start: int, n: int, logits: Tensor, count: int) -> None:
        """Log-probabilities of the prompt tokens that this chunk's positions predict."""
        job = output.job
        if not job.prompt_logprobs:
            job.prompt_logprobs.append(named(self.tokenizer, job.prompt[0], None))
        known = len(job.prompt_logprobs)
        first = max(start + 1, known)
        tokens = job.prompt[first : start + n + 1]
        rows = logits[first - start - 1 : first - start - 1 + len(tokens)]
        job.prompt_logprobs += prompt_report(self.tokenizer, tokens, rows, count)
        if len(job.prompt_logprobs) == len(job.prompt) > known or len(job.prompt) == 1:
            job.stream.put(Delta(prompt_logprobs=tuple(job.prompt_logprobs)))

    def _start(self, output: Output, logits: Tensor) -> None:
        """The prompt is read: fork the other outputs of the request, sample the first tokens."""
        job, outputs = output.job, [output]
        if output.generated == 0 and output.index == 0:
            for index in range(1, job.sampling.n):
                other = Output(job, index, self.tokenizer)
                other.started = output.started
                assert output.state is not None
                try:
                    other.state = self.pool.fork(output.state)
                except OutOfState:
                    self._waiting.append(other)
                    continue
                self._running.append(other)
                outputs.append(other)
        for each in outputs:
            self._sample(each, logits)

    def _decode(self, outputs: list[Output]) -> None:
        """One token for every running output, in one step."""
        logits = self._forward(outputs, [1] * len(outputs), range(len(outputs)))
        for output, row in zip(outputs, logits, strict=True):
            self._sample(output, row)

    def _sample(self, output: Output, logits: Tensor) -> None:
        if output.job.sampling.max_tokens == 0:
            self._finish(output, output.end("length"))
            return
        delta = output.next(logits)
        if delta.finish:
            self._finish(output, delta)
        else:
            output.job.stream.put(delta)

    def _drop(self, output: Output) -> None:
        """Take an output out of the running ones and give its state back."""
        if output in self._running:
            self._running.remove(output)
        if output.state is not None:
            self.pool.free(output.state)
            output.state = None

    def _finish(self, output: Output, delta: Delta) -> None:
        """Send the last delta; the stream closes with the request's last output."""
        self._drop(output)
        if output in self._waiting:
            self._waiting.remove(output)
        job = output.job
        job.stream.put(delta)
        others = [o for o in [*self._running, *self._waiting] if o.job is job]
        if not others:
            job.stream.close()
