"""The engine: requests in, token events out. One for the terminal, the server and evaluation.

Each pass of the loop admits what fits, encodes the sources of new requests to an encoder-decoder
(several at once), feeds one chunk of a prompt to each new request, one token to every running one
(all in a single step; several steps, where nobody minds), and samples. A request's numbers do not
depend on its neighbours: prompts run alone in fixed chunks, and decoding goes through a runner
whose rows are independent.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.inference.admission import Admission
from keifu.inference.beam import Beams
from keifu.inference.choosing import chosen
from keifu.inference.chunks import ALONE, Chunks, chunk_of
from keifu.inference.crew import Crew
from keifu.inference.grammar import Grammars
from keifu.inference.intake import Ask, Intake, check_ids
from keifu.inference.kept import Kept
from keifu.inference.meter import Statistics, statistics
from keifu.inference.prefixes import Prefixes
from keifu.inference.reading import feed_of, go_on
from keifu.inference.request import Delta, Sampling
from keifu.inference.rules import Rules
from keifu.inference.runner import Fast, Runner, Ways
from keifu.inference.sequence import Sequence as Output
from keifu.inference.source import encode_each, mean_state, together
from keifu.inference.speculation import Draft, Speculation, Target
from keifu.inference.stream import Stream
from keifu.inference.striding import Strides
from keifu.nn.pages import OutOfState
from keifu.nn.pair import PairModule
from keifu.nn.stack import StackModule
from keifu.text.tokenizer import Tokenizer


class Engine:
    """Continuous batching over one model: a stack, or a pair of them (an encoder-decoder).

    A pair's prompts are sources, which its encoder reads; its decoder continues `rules.start`.

    Args:
        context: most tokens of a request's prompt and output (a pair's: its output).
        source_context: most tokens of a pair's source; None: as many as the budget holds.
        source_vocab: ids that a source may have; None: the tokenizer's.
        parallel: requests that run at once.
        budget: bytes of state for all of them.
        places: of sources that the budget holds; None: as many as tokens.
        dtype: what branches compute in (not the residual, float32).
        state: what per-token state is kept in; None: the same.
        gist: the id of the gist token, if any.
        prefixes: whether requests share what was read of texts that begin alike.
        deterministic: a request's last bits are the same whatever else runs: it runs alone.
        runners: fast paths, tried in order before the plain one.
        draft: makes what guesses tokens ahead (the outputs stay the same).
        crew: the processes that run the model.
    """

    def __init__(
        self,
        model: StackModule | PairModule,
        tokenizer: Tokenizer,
        *,
        context: int,
        source_context: int | None = None,
        source_vocab: int | None = None,
        rules: Rules = Rules(),
        parallel: int = 4,
        budget: int = 1 << 30,
        places: int | None = None,
        dtype: torch.dtype = torch.float32,
        state: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        end_ids: Sequence[int] = (),
        gist: int | None = None,
        prefixes: bool = True,
        deterministic: bool = False,
        runners: Fast | None = None,
        draft: Draft | None = None,
        crew: Crew = Crew(),
    ) -> None:
        self.pair = model if isinstance(model, PairModule) else None
        self.model = model.decoder if isinstance(model, PairModule) else model
        self.tokenizer, self.parallel, self.rules = tokenizer, parallel, rules
        if self.pair and not rules.start:
            raise KeifuError(
                "nothing says which token the decoder starts with: add decoder_start_token_id to "
                "config.json"
            )
        self.device, self.end_ids = torch.device(device), frozenset(end_ids)
        self.compute = None if dtype == torch.float32 else dtype
        kept: dict[str, Any] = {"dtype": state or dtype, "device": device, "places": places}
        self.crew = crew  # forks of one request (n, beams) take slots beyond `parallel`
        self.pool = crew.pool(model.spec.entries(), budget=budget, slots=parallel + 64, **kept)
        self.context = min(context, self.pool.reach(chunk_of(self.device)))
        self.source_context = min([source_context or 2**62, *self.pool.room().values()])
        self.source_vocab = source_vocab or tokenizer.vocab_size
        why = "attention over a source has no fast path yet" if self.pair else "not asked for"
        ways = Ways(None if self.pair else runners, why, crew.runner)
        self.runners, self.why_plain = ways(self.model, self.pool, self.context), ways.why
        target = Target(self.model, tokenizer, self.pool, self.context, self._forward, ways)
        self.speculation = draft and Speculation(draft(target), self.pool, self.runners[0].free)
        self.deterministic, by = deterministic, ALONE if deterministic else None
        self._chunks = Chunks(deterministic, chunk_of(self.device))
        self.prefixes = Prefixes(model.spec, self.pool, by=by, on=prefixes, tree=crew.tree)
        self._queue = Admission(
            self.pool,
            parallel,
            lambda output, meter: Beams(output, self.pool, self._forward, meter),
            self.prefixes.store,
        )
        ahead = self.device.type != "cpu"
        self.grammars = Grammars(tokenizer, self.end_ids, ahead=ahead)
        self.intake = Intake(
            grammars=self.grammars,
            owner=self,
            pool=self.pool,
            pair=self.pair,
            rules=rules,
            vocab=tokenizer.vocab_size,
            source_vocab=self.source_vocab,
            context=self.context,
            source_context=self.source_context,
            gist=gist,
        )
        marked, coarse = self.pair is None, not deterministic
        self._feed = partial(feed_of, compute=self.compute, marked=marked, coarse=coarse)
        self._strides = Strides(self.pool, self.runners, self._chunks, self._feed)
        self._calls: deque[tuple[Callable[[], Any], list[Any], threading.Event]] = deque()
        self._wake = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        prefix: Sequence[int] = (),
        continues: bool = True,
        shown: frozenset[int] = frozenset(),
        memories: Mapping[str, Tensor] | None = None,
        past: Kept | None = None,
        keep: Callable[[Output], None] | None = None,
        stream: Stream | None = None,
    ) -> Stream:
        """Queue a request; its deltas come on the stream.

        Args:
            prompt: what the output continues; to an encoder-decoder, the source.
            prefix: how an encoder-decoder's output begins, after its start tokens.
            continues: whether the output continues the prompt's own text, so that a leading space
                is kept (false for an assistant's answer).
            shown: special tokens that appear in the text all the same (parts of tool calls).
            memories: what a stack's cross mixers read, (length, width) by name.
            past: what was read before the prompt, which is not read again.
            keep: called in the engine's thread when the first output has ended and its state is
                still there.
            stream: where the deltas go, if not to a plain stream.

        Raises:
            ContextLengthError: the prompt, or the prompt with max_tokens, does not fit.
        """
        ask = Ask(
            prompt=prompt,
            sampling=sampling,
            prefix=prefix,
            continues=continues,
            shown=shown,
            memories=memories,
            past=past,
            keep=keep,
        )
        job = self.intake.job(ask, stream := stream or Stream(), self.end_ids)
        stream.on_cancel = self._notify
        with self._wake:
            self._begin()
            self._queue.waiting.append(Output(job, 0, self.tokenizer))
        return stream

    def _begin(self) -> None:
        """Refuse what comes after the end; wake the loop, or start it. Under the lock."""
        if lost := KeifuError("the engine is closed") if self._stopped else self.crew.lost:
            raise lost
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="keifu", daemon=True)
            self._thread.start()
        self._strides.hurry()
        self._wake.notify()

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a function between steps, in the engine's thread, and return its value."""
        box, done = [None, None], threading.Event()
        with self._wake:
            self._begin()
            self._calls.append((function, box, done))
        done.wait()
        if box[1] is not None:
            raise box[1]
        return box[0]

    def embed(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The mean of each prompt's last hidden states (an encoder's): (prompts, width) float32."""
        if self.crew.size > 1:
            raise KeifuError("a model over several processes does not embed yet: load it in one")
        for prompt in prompts:
            if self.pair:
                check_ids(prompt, self.source_vocab)
            else:
                self.intake.check(prompt, Sampling(max_tokens=0))

        def run() -> Tensor:
            reader = self.pair or self.model
            return torch.stack([mean_state(reader, prompt, self.device) for prompt in prompts])

        found: Tensor = self.call(run)
        return found

    def statistics(self) -> Statistics:
        """What it has counted, and how it is now. Safe from any thread."""
        return statistics(self._queue, self.prefixes, self.speculation)

    def close(self) -> None:
        """Stop; what runs or waits ends as cancelled."""
        with self._wake:
            self._stopped = True
            self._strides.hurry()
            self._wake.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self.grammars.close()
        self.crew.close()

    def _notify(self) -> None:
        with self._wake:
            self._strides.hurry()
            self._wake.notify()

    def _loop(self) -> None:
        with torch.inference_mode():
            while True:
                with self._wake:
                    while not (self._stopped or self._queue or self._calls):
                        self._wake.wait()
                    if self._stopped:
                        break
                    self._strides.begin()
                    calls = [self._calls.popleft() for _ in range(len(self._calls))]
                for function, box, done in calls:
                    try:
                        box[0] = function()
                    except Exception as error:  # handed to the caller
                        box[1] = error
                    done.set()
                try:
                    self.step()
                except Exception as error:  # of nobody's request: all end with it, the engine stays
                    self._queue.fail_all(error)
            self._queue.close()

    def step(self) -> None:
        """One pass: cancel, admit, encode sources, read prompts, decode."""
        queue = self._queue
        for output in [*queue.running, *queue.waiting]:
            if output.job.stream.cancelled:
                queue.finish(output, output.end("cancelled"))
        queue.admit()
        self._encode()
        for output in [o for o in queue.running if not self._chunks.last(o)]:
            if output in queue.running and not output.unread:
                self.prefixes.begin(output)
                queue.run([output], self._chunks.count, self._prefill)
        ready = [o for o in queue.running if self._chunks.last(o)]
        for outputs in [[o] for o in ready] if self.deterministic else [ready][: len(ready)]:
            queue.run(outputs, self._chunks.count, self._decode)
        queue.search()

    def _encode(self) -> None:
        """Encode waiting sources."""
        outputs = together(self._queue.unread())[: 1 if self.deterministic else None]
        if outputs and self.pair is not None:
            encode_each(self.pair, outputs, self.device, self.compute, self._queue.fail)

    def _forward(
        self,
        outputs: list[Output],
        lengths: list[int],
        select: Sequence[int],
        *,
        runners: Sequence[Runner] | None = None,
    ) -> Tensor:
        """Run the next `lengths` tokens, own and guessed, of each; logits (len(select), vocab)."""
        feed = self._feed(outputs, lengths)
        runner = next(r for r in runners or self.runners if r.takes(lengths, feed.states))
        logits = runner.run(feed, select)
        self._queue.meter.step(lengths if runners is None else ())
        for output, state, n in zip(outputs, feed.states, lengths, strict=True):
            self.pool.advance(state, n, undoable=bool(runners or output.guessed))
            output.memories = {}
        return logits

    def _prefill(self, outputs: list[Output]) -> None:
        """One chunk of one prompt; its last chunk also gives the first token."""
        (output,) = outputs
        assert output.state is not None
        job, n = output.job, self._chunks.count(output)
        start = output.state.length - job.offset
        last = n == output.pending
        wanted = job.sampling.prompt_logprobs
        scores = wanted is not None and output.index == 0
        select = range(n) if scores else ([n - 1] if last else [])
        logits = self._forward([output], [n], list(select))
        if scores and wanted is not None:
            output.report(start, n, logits, wanted)
        if not output.generated:  # what goes on is kept when it ends
            self.prefixes.store(output)
        if last:
            self._start(output, logits[-1])

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
                    self._queue.waiting.append(other)
                    continue
                self._queue.running.append(other)
                outputs.append(other)
        for each in outputs:
            self._sample(each, logits[None])

    def _decode(self, outputs: list[Output]) -> None:
        """One step for every running output: what it has not read, and what may follow."""
        if self.speculation is not None:
            self.speculation.draft(outputs)
        elif len(outputs) == len(self._queue.running) and self._stride(outputs):
            return
        lengths = [o.pending + len(o.guessed) for o in outputs]
        ends, wanted = accumulate(lengths), [1 + len(o.guessed) for o in outputs]
        select = [i for end, n in zip(ends, wanted, strict=True) for i in range(end - n, end)]
        logits = self._forward(outputs, lengths, select)
        # One token each, of nothing but scores: all at once; the others on their own.
        firsts = dict(zip(outputs, accumulate(wanted, initial=0), strict=False))
        simple = [o for o in outputs if not (o.guessed or o.matcher)]
        for output, made in go_on(simple, [firsts[o] for o in simple], logits):
            self._send(output, made)
        for output, n in zip(outputs, wanted, strict=True):
            if output.guessed or output.matcher:
                try:
                    self._sample(output, logits[firsts[output] : firsts[output] + n])
                except Exception as error:  # the others go on
                    self._queue.fail(output, error)

    def _stride(self, outputs: list[Output]) -> bool:
        """Several steps for every running output; whether any was taken."""
        for tokens in (made := () if self._queue.searches else self._strides.take(outputs)):
            self._queue.meter.step([1] * len(outputs))
            for output, token in zip(outputs, tokens, strict=True):
                if output.state is not None:  # neither ended nor failed
                    self._send(output, token)
        return bool(made)

    def _send(self, output: Output, made: Delta | Exception | int) -> None:
        """Send what a step made, a token too; a fault ends only the request that causes it."""
        try:
            if isinstance(made, Exception):
                raise made
            delta = output.accept(chosen(made)) if isinstance(made, int) else made
            self._queue.send(output, delta)
        except Exception as error:
            self._queue.fail(output, error)

    def _sample(self, output: Output, rows: Tensor) -> None:
        """The tokens that logits (1 + guesses, vocab) give."""
        if output.job.sampling.max_tokens == 0:
            self._queue.finish(output, output.end("length"))
        elif self.speculation is not None and output.guessed:
            for delta in self.speculation.take(output, rows):
                self._queue.send(output, delta)
        else:
            self._queue.send(output, output.next(rows[0]))
        if output.finish is None and (more := output.forced()) is not None:
            self._queue.send(output, more)
