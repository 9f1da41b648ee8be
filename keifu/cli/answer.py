"""Running one request from a terminal: Ctrl-C stops it, and what it cost is measured and told."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from keifu.inference.request import Completion, Delta, Usage
from keifu.inference.stream import Stream, collect

if TYPE_CHECKING:
    from keifu.lm.base import LM

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A finished request: what was said, and the clock's own view of it (seconds)."""

    completion: Completion
    first: float
    """From asking to the first text."""
    total: float

    @property
    def decode(self) -> float:
        """Seconds of making tokens, the model's own measure where it gives one."""
        return self.completion.timings.decode or self.total - self.first

    @property
    def rate(self) -> float | None:
        """Tokens a second while decoding; the first token comes out of the prompt's pass."""
        made = self.completion.usage.completion_tokens - 1
        return made / self.decode if made > 0 and self.decode > 0 else None


def run(stream: Stream, write: Callable[[str], None], *, stoppable: bool = False) -> Answer:
    """Read a stream to its end, handing each piece of text to `write`.

    If `stoppable`, the first Ctrl-C cancels the request and what came so far is the answer; a
    second one, or the first one otherwise, raises KeyboardInterrupt.
    """
    start, first = time.perf_counter(), 0.0
    deltas: list[Delta] = []
    try:
        with _interruptible(stream) if stoppable else nullcontext():
            for delta in stream:
                deltas.append(delta)
                if delta.text:
                    first = first or time.perf_counter() - start
                    write(delta.text)
    except BaseException:
        stream.cancel()
        raise
    total = time.perf_counter() - start
    return Answer(completion=collect(deltas), first=first or total, total=total)


def joined(answers: Sequence[Answer]) -> Answer:
    """Answers to the parts of one question as one: texts a blank line apart, costs added up."""
    if len(answers) == 1:
        return answers[0]
    last, done = answers[-1].completion, [answer.completion for answer in answers]
    choice = replace(
        last.choices[0],
        text="\n\n".join(one.text for one in done),
        tokens=tuple(token for one in done for token in one.tokens),
        finish=next((one.finish for one in done if one.finish != "stop"), "stop"),
    )
    usage = Usage(
        prompt_tokens=sum(one.usage.prompt_tokens for one in done),
        completion_tokens=sum(one.usage.completion_tokens for one in done),
        cached_tokens=sum(one.usage.cached_tokens for one in done),
    )
    timings = replace(
        last.timings,
        prefill=sum(one.timings.prefill or 0.0 for one in done),
        decode=sum(answer.decode for answer in answers),
        first_token=done[0].timings.first_token,
    )
    whole = Completion((choice,), usage, timings)
    return Answer(
        completion=whole, first=answers[0].first, total=sum(answer.total for answer in answers)
    )


def as_json(lm: LM, answer: Answer, loaded: float) -> dict[str, Any]:
    """The result of a one-shot request, for programs; `loaded`: seconds to open the model."""
    said, usage, timings = answer.completion, answer.completion.usage, answer.completion.timings
    prefill = timings.prefill or answer.first
    return {
        "schema_version": SCHEMA,
        "model": lm.name,
        "text": said.text,
        "finish_reason": said.finish,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "cached_tokens": usage.cached_tokens,
            "drafted_tokens": usage.drafted_tokens,
            "accepted_tokens": usage.accepted_tokens,
        },
        "timings": {
            "load": loaded,
            "first_token": timings.first_token or answer.first,
            "prefill": prefill,
            "decode": answer.decode,
            "total": answer.total,
            "prompt_per_second": _rate(usage.prompt_tokens - usage.cached_tokens, prefill),
            "predicted_per_second": answer.rate,
        },
    }


def meter(answer: Answer, context: int) -> str:
    """One line: tokens, speed, how full the context is."""
    usage = answer.completion.usage
    parts = [f"{usage.completion_tokens} tokens"]
    if answer.rate is not None:
        parts.append(f"{answer.rate:.1f} tokens/s")
    parts.append(f"first after {answer.completion.timings.first_token or answer.first:.2f} s")
    parts.append(f"context {usage.total_tokens}/{context} ({usage.total_tokens / context:.0%})")
    return ", ".join(parts)


def ended(answer: Answer, max_tokens: int | None) -> str | None:
    """Why an answer is not whole, in words; None if it is."""
    if answer.completion.finish == "length":
        if max_tokens is not None and answer.completion.usage.completion_tokens >= max_tokens:
            return f"the answer was cut at {max_tokens} tokens (--max-tokens)"
        return "the answer was cut: the context is full (--ctx makes it larger)"
    return None


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None


@contextmanager
def _interruptible(stream: Stream) -> Iterator[None]:
    """While inside, SIGINT cancels the stream rather than raising in the middle of a drawing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        if stream.cancelled:
            raise KeyboardInterrupt
        stream.cancel()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
