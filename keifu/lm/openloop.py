"""Open-loop load on a server: requests leave when they are due, whatever became of the others.

Arrivals are a Poisson process (gaps are exponential), drawn before anything is sent. A closed
loop, whose clients wait for their answers, asks less of a server that is slow, and so flatters it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from keifu.core.errors import KeifuError, unknown
from keifu.lm.latency import LATENCIES, Record, summary
from keifu.lm.openai import OpenAILM
from keifu.lm.texts import Texts, source_text
from keifu.lm.transport import submit

SCHEMA = 1
SECONDS = 30.0
MOST = 1_000_000
COMMAS = {"commas": True}


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What is asked of a server, how often, and what counts as good."""

    rate: tuple[float, ...] = field(default=(1.0, 2.0, 4.0), metadata=COMMAS)
    """Requests a second, one measurement for each of them"""
    requests: int | None = None
    """Requests at each rate"""
    seconds: float | None = None
    """Seconds in which requests leave, at each rate (default: 30, unless --requests says)"""
    concurrency: int | None = None
    """Most requests at once; others wait here, and the wait counts (default: no bound)"""
    input: tuple[str, ...] = field(default=("128", "512"), metadata=COMMAS)
    """Tokens of a prompt: numbers and ranges such as 64-256, each as likely"""
    output: tuple[str, ...] = field(default=("64",), metadata=COMMAS)
    """Tokens of an answer, likewise"""
    shared: float = 0.0
    """Share of each prompt, from its beginning, that all prompts have in common"""
    text: Path | None = None
    """Text that prompts are cut from (default: Python's own documentation)"""
    chat: bool = False
    """Ask /chat/completions instead of /completions"""
    ignore_eos: bool = True
    """Go on past the end token, so that answers are as long as asked; not every server knows it"""
    slo: tuple[str, ...] = field(default=(), metadata=COMMAS)
    """Most milliseconds of a good answer, as ttft:500,tpot:50 (also itl, e2e)"""
    timeout: float = 600.0
    """Seconds after which a request has failed"""
    seed: int = 0
    """Of arrivals, lengths and texts"""

    def __post_init__(self) -> None:
        """Refuse what says nothing."""
        _check("rate", self.rate, 1e-3, 1e4)
        _check("requests", [self.requests], 1, MOST)
        _check("seconds", [self.seconds], 1e-3, 1e6)
        _check("concurrency", [self.concurrency], 1, MOST)
        _check("shared", [self.shared], 0, 1)
        _check("timeout", [self.timeout], 1e-3, 1e5)
        self.lengths("input"), self.lengths("output"), self.limits()

    def lengths(self, name: Literal["input", "output"]) -> list[tuple[int, int]]:
        """The ranges of a length, both ends included."""
        found = []
        for word in getattr(self, name):
            low, dash, high = word.partition("-")
            try:
                pair = int(low), int(high if dash else low)
            except ValueError:
                _refuse(name, word, "numbers and ranges such as 64-256")
            if not 1 <= pair[0] <= pair[1] <= MOST:
                _refuse(name, word, f"from 1 to {MOST}, the lower end of a range first")
            found.append(pair)
        return found

    def limits(self) -> dict[str, float]:
        """Most seconds of a good answer, by latency."""
        found = {}
        for word in self.slo:
            name, _, value = word.partition(":")
            if name not in LATENCIES:
                raise unknown("latency for --slo", name, LATENCIES, "write ttft:500,tpot:50")
            try:
                found[name] = float(value) / 1e3
            except ValueError:
                _refuse("slo", word, "milliseconds, as in ttft:500,tpot:50")
            if not 0 < found[name] < 1e6:
                _refuse("slo", word, "above 0 milliseconds")
        return found


def _check(name: str, values: Sequence[float | None], least: float, most: float) -> None:
    if not values:
        _refuse(name, "(nothing)", "one number or several with commas")
    for value in values:
        if value is not None and not least <= value <= most:
            _refuse(name, value, f"from {least:g} to {most:g}")


def _refuse(name: str, value: object, allowed: str) -> NoReturn:
    raise KeifuError(f"--{name} {value} is not allowed: {allowed}")


@dataclass(frozen=True)
class Arrival:
    """One request to come."""

    at: float
    """Seconds after the beginning."""
    prompt: str | list[int]
    output: int


def arrivals(rate: float, options: LoadOptions, texts: Texts, draw: random.Random) -> list[Arrival]:
    """A Poisson process of requests, with their texts."""
    seconds = options.seconds
    if seconds is None:
        seconds = SECONDS if options.requests is None else float("inf")
    most = MOST if options.requests is None else options.requests
    inputs, outputs = options.lengths("input"), options.lengths("output")
    found: list[Arrival] = []
    at = 0.0  # the first is sent at once: a short test of a low rate has at least one
    while len(found) < most and at <= seconds:
        prompt = texts.cut(draw.randint(*draw.choice(inputs)), options.shared, draw)
        found.append(Arrival(at, prompt, draw.randint(*draw.choice(outputs))))
        at += draw.expovariate(rate)
    return found


class Load:
    """One server under load.

    Args:
        lm: the served model; it must not retry, and must not bound its connections.
        clock: seconds.
    """

    def __init__(
        self, lm: OpenAILM, options: LoadOptions, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.lm, self.options, self._clock = lm, options, clock
        self._cap = None if options.concurrency is None else asyncio.Semaphore(options.concurrency)

    async def drive(self, plan: Sequence[Arrival]) -> list[Record]:
        """Send everything when it is due; returns when all has ended."""
        began = self._clock()
        records = [Record(due=began + arrival.at) for arrival in plan]
        async with asyncio.TaskGroup() as group:
            for arrival, record in zip(plan, records, strict=True):
                if (wait := record.due - self._clock()) > 0:
                    await asyncio.sleep(wait)
                group.create_task(self._one(arrival, record))
        return records

    async def _one(self, arrival: Arrival, record: Record) -> None:
        if self._cap is None:
            await self._ask(arrival, record)
        else:
            async with self._cap:
                await self._ask(arrival, record)

    async def _ask(self, arrival: Arrival, record: Record) -> None:
        """One request; a failure is its record's."""
        path, body = self.body(arrival)
        record.sent = self._clock()
        finished = False
        try:
            async with aclosing(self.lm.transport.events(path, body, {})) as events:
                async for event in events:
                    if event.data.strip() == "[DONE]":
                        break
                    finished |= self._read(event.data, record)
            if not finished:
                record.failed = "the answer broke off"
        except KeifuError as error:
            record.failed = " ".join(str(error).split())[:200]
        record.end = self._clock()
        record.output_tokens = record.output_tokens or len(record.pieces)

    def body(self, arrival: Arrival) -> tuple[str, dict[str, Any]]:
        """Path and body of a request."""
        options = self.options
        body: dict[str, Any] = {
            "model": self.lm.model,
            "max_tokens": arrival.output,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if options.ignore_eos:
            body["ignore_eos"] = True
        if options.chat:
            body["messages"] = [{"role": "user", "content": arrival.prompt}]
            return "/chat/completions", body
        body["prompt"] = arrival.prompt
        return "/completions", body

    def _read(self, data: str, record: Record) -> bool:
        """Note a chunk's time and usage; whether it says that the answer is finished."""
        now, chunk = self._clock(), self.lm.transport.decode(data)
        if isinstance(chunk, dict) and chunk.get("error"):
            raise self.lm.transport.failure(0, chunk)
        try:
            return self._note(now, chunk, record)
        except (LookupError, TypeError, AttributeError, ValueError):
            raise KeifuError(f"the server sent a malformed chunk: {data[:80]!r}") from None

    def _note(self, now: float, chunk: Mapping[str, Any], record: Record) -> bool:
        finished = said = False
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            said |= any((choice.get("text"), *(delta.get(name) for name in _SAID)))
            finished |= bool(choice.get("finish_reason"))
        if said:
            record.pieces.append(now)
        if usage := chunk.get("usage"):
            record.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            record.output_tokens = int(usage.get("completion_tokens") or 0)
        return finished


_SAID = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls")


def measure(
    lm: OpenAILM, options: LoadOptions, *, told: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Put every rate on a server; a JSON object with one row a rate.

    Raises:
        KeifuError: the server does not answer even one request by itself.
    """
    texts = Texts.of(lm, source_text(options.text), ids=not options.chat)
    draw = random.Random(options.seed)
    load, rows = Load(lm, options), []
    told("one request alone")
    alone = _run(load, [Arrival(0.0, texts.cut(*_first(options), draw), 2)])[0]
    if alone.failed:
        raise KeifuError(f"the server does not answer: {alone.failed}")
    for rate in options.rate:
        plan = arrivals(rate, options, texts, draw)
        told(f"{len(plan)} requests at {rate:g} a second")
        cpu, wall = time.process_time(), time.perf_counter()
        records = _run(load, plan)
        used = (time.process_time() - cpu) / (time.perf_counter() - wall)
        rows.append({"rate": rate, **summary(records, options.limits()), "client_cpu": used})
    return {
        "schema_version": SCHEMA,
        "model": lm.model,
        "settings": {**_settings(options), "prompts": texts.told},
        "rows": rows,
    }


def _first(options: LoadOptions) -> tuple[int, float]:
    return options.lengths("input")[0][0], options.shared


def _run(load: Load, plan: Sequence[Arrival]) -> list[Record]:
    running = submit(load.drive(plan))
    try:
        return running.result()
    except BaseException:  # interrupted: what is under way ends here
        running.cancel()
        raise


def _settings(options: LoadOptions) -> Mapping[str, Any]:
    found = {name: getattr(options, name) for name in options.__dataclass_fields__}
    return {**found, "text": options.text.name if options.text else "pydoc_data.topics"}
