"""One output in the making: its tokens, its state, its text, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING

from torch import Tensor

from keifu.inference.choosing import Chooser, single
from keifu.inference.grammar import Grammar, Matcher
from keifu.inference.kept import Kept
from keifu.inference.request import Delta, FinishReason, Sampling, Timings, TokenLogprob, Usage
from keifu.inference.rules import Rules, no_repeat
from keifu.inference.sampling import History, changes, forbid, penalise
from keifu.inference.stream import Stream
from keifu.nn.masks import UNMARKED, Landmarks
from keifu.nn.state import RequestState
from keifu.text.detokenize import Detokenizer, StopStrings
from keifu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from keifu.inference.source import Reading


FORCED = 8
"""Most tokens at once that a constraint forces; they are read in one step."""
TAIL = 32
"""Tokens at a prompt's end that are always computed as finely as what follows them."""


@dataclass(eq=False)
class Job:
    """One request: the prompt, what is asked, and where its deltas go."""

    prompt: tuple[int, ...]
    sampling: Sampling
    stream: Stream
    end_ids: frozenset[int]
    limit: int
    """Most tokens of prompt and output together."""
    continues: bool = True
    """Whether the output continues the prompt's text (its first space is kept)."""
    shown: frozenset[int] = frozenset()
    """Special tokens that appear in the text."""
    memories: Mapping[str, Tensor] = field(default_factory=dict)
    """What cross mixers read, (length, width) by name, where the request brought it."""
    source: tuple[int, ...] = ()
    """What the encoder of an encoder-decoder reads."""
    places: Mapping[str, int] = field(default_factory=dict)
    """Length of each memory, by name, that state is kept of."""
    rules: Rules = Rules()
    grammar: Grammar | None = None
    """What the output must follow."""
    read: int = 0
    """Tokens that the request gave: its usage."""
    arrived: float = field(default_factory=time.monotonic)
    sought: int = 0
    """Tokens of its prompt that were looked for among what was read before."""
    cached: int = 0
    """Tokens of its past and its prompt that were not read again."""
    past: Kept | None = None
    """What was read before the prompt."""
    offset: int = 0
    """The position of the prompt's first token."""
    landmarks: Landmarks = UNMARKED
    """Of the past and the prompt; to an encoder-decoder, of the source."""
    keep: Callable[[Sequence], None] | None = None
    """Called when the first output has ended, before its state goes."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def coarse(self) -> int:
        """Positions of a prompt that nobody asks of but what comes later: all except its end's."""
        scored = self.sampling.prompt_logprobs is not None
        return 0 if scored else max(self.offset + len(self.prompt) - TAIL, 0)


class Sequence:
    """One of a job's outputs."""

    def __init__(self, job: Job, index: int, tokenizer: Tokenizer) -> None:
        self.job, self.index, self.tokenizer = job, index, tokenizer
        self.tokens = list(job.prompt)
        self.state: RequestState | None = None
        self.memories: Mapping[str, Tensor] = {}
        """What cross mixers read in the first step, which writes what is kept of it."""
        self.reading: Reading | None = None
        """How far a source has come that takes several passes."""
        self.history = History(job.prompt)
        self.matcher: Matcher | None = job.grammar.matcher() if job.grammar else None
        self._wide = True
        """Whether many tokens could come when that was last looked at."""
        self.guessed: list[int] = []
        """Tokens that may follow, to be read with the next one and kept where it chooses them."""
        self.drafted = self.accepted = 0
        """Tokens guessed so far, and those that were right."""
        self.finish: FinishReason | None = None
        self.started = self.first = self.last = 0.0
        """When it was let in, and had its first and its latest token."""
        self.branch = 0
        """Where others went on differently: recurrent state is kept there."""
        self.passed = 0
        """Those that came later and were let in while it waited."""
        self.postponed = False
        """Whether it found no room beside others, and so waits until they have left."""
        hide = not job.sampling.show_special
        constraint = job.sampling.constraint
        start = not job.continues and (constraint is None or constraint.free)
        self._text = Detokenizer(tokenizer, skip_special=hide, start=start, shown=job.shown)
        self._stops = StopStrings(job.sampling.stop, include=job.sampling.include_stop)
        self.chooser = Chooser(job.sampling, index)
        sampling = job.sampling
        self._edits = bool(job.rules.any or sampling.no_repeat_ngram) or changes(sampling)
        told = sampling.stop or sampling.logprobs is not None or self.chooser.filters
        self._steady = not (told or self._edits or self.matcher)
        self.ends = job.end_ids.union(sampling.stop_ids)
        """Tokens that end it."""

    @property
    def generated(self) -> int:
        """Output tokens so far."""
        return len(self.tokens) - len(self.job.prompt)

    @property
    def length(self) -> int:
        """Positions so far, those of its past too."""
        return self.job.offset + len(self.tokens)

    @property
    def read(self) -> int:
        """Tokens that the model has read, of its own and not of its past."""
        return self.state.length - self.job.offset if self.state else 0

    @property
    def pending(self) -> int:
        """Tokens that the model has not read yet."""
        return len(self.tokens) - self.read

    @property
    def left(self) -> int:
        """Tokens that may still come."""
        most = self.job.sampling.max_tokens
        room = self.job.limit - self.length
        return room if most is None else min(room, most - self.generated)

    @property
    def steady(self) -> bool:
        """Whether scores and settings alone say which tokens come next and when they end."""
        plain = self._steady and not (self.guessed or self.edits)
        return plain and self.pending == 1 and self.generated > 0

    @property
    def unread(self) -> bool:
        """Whether its source has to be encoded before it can run."""
        empty = self.state is not None and self.state.length == 0
        return empty and bool(self.job.source) and not self.memories

    def next(self, logits: Tensor, guess: int | None = None) -> Delta:
        """Choose a token from logits (vocab,), whatever was guessed; returns its delta."""
        matcher = self._matching
        if matcher is None:
            token = self._chosen(self.allowed(logits) if self.edits else logits)
        else:
            token = self._followed(matcher, logits)
        self.accepted += token == guess
        return self.accept(token, logits)

    def _chosen(self, logits: Tensor, among: Tensor | None = None) -> int:
        """A token by logits (vocab,); one of `among` (ids), where given."""
        scores = penalise(logits, self.job.sampling, self.history)
        return single(self.chooser, self.generated, scores, among)

    def _followed(self, matcher: Matcher, logits: Tensor) -> int:
        """A token that a constraint allows.

        Where most may come, one is chosen as if all might, and stays if it may: who wins among all
        wins among those that may come too, and nobody had to find out which these are.
        """
        ends, rules = self._may_end, self.job.sampling.no_repeat_ngram or self.job.rules.forbid
        if self._wide and not rules and self.job.sampling.each_alone:
            token = self._chosen(logits)
            if (ends or token not in matcher.ends) and matcher.valid([token]):
                return token
        among = matcher.few(ends=ends)
        self._wide = among is None
        if among is None or rules:
            return self._chosen(self.allowed(logits))
        return self._chosen(logits, among)

    def guesser(self) -> Callable[[Tensor], int]:
        """What chooses tokens from logits (vocab,) one after another as `next` is going to, with
        the same draws; the output stays as it is."""
        history, places = self.history.copy(), count(self.generated)

        def choice(logits: Tensor) -> int:
            scores = penalise(logits, self.job.sampling, history)
            token = single(self.chooser, next(places), scores)
            history.add(token)
            return token

        return choice

    def possible(self, guessed: list[int]) -> list[int]:
        """The first of these tokens, as far as a constraint lets them come."""
        matcher = self._matching
        return guessed if matcher is None else guessed[: matcher.valid(guessed)]

    @property
    def edits(self) -> bool:
        """Whether anything but the model has a say in the next token's scores."""
        return self._edits or self.generated < self.job.sampling.min_tokens

    def scores(self, logits: Tensor) -> Tensor:
        """Logits (vocab,) of the next token, with all that has a say in them."""
        return penalise(self.allowed(logits), self.job.sampling, self.history)

    def upcoming(self, start: int, count: int) -> list[int]:
        """`count` tokens from position `start` on: its own, then guessed ones."""
        at = start - self.job.offset
        own = self.tokens[at : at + count]
        if len(own) == count:
            return own
        after = at + len(own) - len(self.tokens)
        return own + self.guessed[after : after + count - len(own)]

    def allowed(self, scores: Tensor) -> Tensor:
        """Scores (vocab,) of the next token, without those that may not come."""
        sampling, job, matcher = self.job.sampling, self.job, self._matching
        if matcher is None:
            scores = no_repeat(scores, self.tokens, sampling.no_repeat_ngram)
            if self.generated < sampling.min_tokens:
                scores = forbid(scores, sorted(job.end_ids | set(sampling.stop_ids)))
            return job.rules.apply(scores, self.tokens, last=self.length + 1 >= job.limit)
        # A constraint comes first: what would leave nothing of what it allows, does not apply.
        scores = matcher.allow(scores, ends=self._may_end)
        scores = _some(no_repeat(scores, self.tokens, sampling.no_repeat_ngram), scores)
        return _some(job.rules.apply(scores, self.tokens, last=False), scores)

    @property
    def _may_end(self) -> bool:
        sampling = self.job.sampling
        return not sampling.ignore_eos and self.generated >= sampling.min_tokens

    @property
    def _matching(self) -> Matcher | None:
        """The matcher, if the next token is the output's own and none that the rules force."""
        forced = self.job.rules.first is not None and self.generated == 0
        return None if forced else self.matcher

    def follow(self, source: Sequence, token: int) -> None:
        """Go on where a beam's output stands, past one more token."""
        if (matcher := source._matching) is not None:
            self.matcher = matcher.fork()
            self.matcher.take(token)

    def report(self, start: int, n: int, logits: Tensor, count: int) -> None:
        """Log-probabilities of the prompt tokens that n positions from `start` on predict."""
        job = self.job
        if not job.prompt_logprobs:
            job.prompt_logprobs.append(named(self.tokenizer, job.prompt[0], None))
        known = len(job.prompt_logprobs)
        first = max(start + 1, known)
        tokens = job.prompt[first : start + n + 1]
        rows = logits[first - start - 1 : first - start - 1 + len(tokens)]
        job.prompt_logprobs += prompt_report(self.tokenizer, tokens, rows, count)
        if len(job.prompt_logprobs) == len(job.prompt) > known or len(job.prompt) == 1:
            job.stream.put(Delta(prompt_logprobs=tuple(job.prompt_logprobs)))

    def accept(self, token: int, logits: Tensor | None = None) -> Delta:
        """Take a token; returns its delta, the last one with `finish` set.

        Args:
            logits: (vocab,) what the model gave; needed where log-probabilities are reported.
        """
        now = time.monotonic()
        self.first = self.first or now
        sampling, matcher = self.job.sampling, self._matching
        whole = matcher is not None and matcher.take(token)
        self.tokens.append(token)
        self.history.add(token)
        report: tuple[TokenLogprob, ...] = ()
        if sampling.logprobs is not None and logits is not None:
            report = (token_logprob(self.tokenizer, logits, token, sampling.logprobs),)
        ended = token in self.ends
        if matcher is not None and token in matcher.ends:
            return self.end("stop", token, tokens=(token,), logprobs=report)
        if ended and not sampling.include_stop:
            return self.end("stop", token, tokens=(token,), logprobs=report)
        # Rows of the table beyond the vocabulary (T5 has 28) have no text.
        piece = self._text.push(token) if token < self.tokenizer.vocab_size else ""
        text, stop = self._stops.push(piece)
        if ended or stop is not None:
            why = token if stop is None else stop
            return self.end("stop", why, text=text, tokens=(token,), logprobs=report)
        if whole:
            return self.end("stop", None, text=text, tokens=(token,), logprobs=report)
        if self.left <= 0:
            return self.end("length", None, text=text, tokens=(token,), logprobs=report)
        return Delta(index=self.index, text=text, tokens=(token,), logprobs=report)

    def forced(self) -> Delta | None:
        """Take the tokens that a constraint forces next, as the tokenizer writes what they spell.

        Nobody has to ask the model for them, unless somebody wants to know how likely they are.
        """
        matcher = self._matching
        if matcher is None or self.job.sampling.logprobs is not None:
            return None
        delta: Delta | None = None
        for token in matcher.forced()[:FORCED]:
            more = self.accept(token)
            delta = more if delta is None else delta.then(more)
            if self.finish:
                break
        return delta

    def end(
        self,
        finish: FinishReason,
        stop: str | int | None = None,
        *,
        text: str = "",
        tokens: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> Delta:
        """The last delta: what was held back (unless a stop string cut it), usage and timings."""
        self.finish = finish
        if not isinstance(stop, str):
            rest, cut = self._stops.push(self._text.flush())
            text += rest + (self._stops.flush() if cut is None else "")
        now = time.monotonic()
        first = self.first or now
        return Delta(
            index=self.index,
            text=text,
            tokens=tokens,
            logprobs=logprobs,
            finish=finish,
            stop=stop,
            usage=Usage(
                self.job.read, self.generated, self.job.cached, self.drafted, self.accepted
            ),
            timings=Timings(
                queued=(self.started or now) - self.job.arrived,
                prefill=first - (self.started or first),
                decode=now - first,
                first_token=first - self.job.arrived,
            ),
        )


def _some(scores: Tensor, otherwise: Tensor) -> Tensor:
    """Scores, if any token is left in them."""
    return otherwise if scores is not otherwise and bool(scores.isneginf().all()) else scores


def token_logprob(tokenizer: Tokenizer, logits: Tensor, token: int, count: int) -> TokenLogprob:
    """A token's log-probability under logits (vocab,), with the `count` likeliest alternatives."""
    log = logits.float().log_softmax(-1)
    best = log.topk(min(count, log.shape[0]))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    top = tuple(named(tokenizer, i, p) for i, p in pairs)
    return replace(named(tokenizer, token, float(log[token])), top=top)


def named(tokenizer: Tokenizer, token: int, logprob: float | None) -> TokenLogprob:
    """A token with its text and bytes."""
    data = tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b""
    return TokenLogprob(token, data.decode("utf-8", "replace"), logprob, (), data)


def prompt_report(
    tokenizer: Tokenizer, tokens: Seq[int], logits: Tensor, count: int
) -> list[TokenLogprob]:
    """Reports for tokens (n,) given the logits (n, vocab) of the positions before them."""
    return [
        token_logprob(tokenizer, row, token, count)
        for token, row in zip(tokens, logits, strict=True)
    ]
