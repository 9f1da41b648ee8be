"""A small real LM (a bigram model over bytes) and a real server on a free port, for tests."""

from __future__ import annotations

import codecs
import itertools
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.inference.request import Delta, Sampling, Score, TokenLogprob, ToolCall, Usage
from keifu.inference.stream import Stream
from keifu.lm.base import LM, ChatOptions
from keifu.lm.tools import HERMES, ToolReader
from keifu.server.app import build, service
from keifu.server.models import Models, offers
from keifu.server.run import Server, listen
from keifu.server.settings import Access, Compat, Limits

BOS, EOS, FIRST = 0, 1, 3
SPECIAL = {"<bos>": [BOS], "<eos>": [EOS]}
VOCABULARY = 256 + FIRST


def bigram_logprobs() -> np.ndarray:
    """Row i: log-probabilities of the token after token i."""
    logits = np.random.default_rng(7).normal(size=(VOCABULARY, VOCABULARY)) * 2
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


class FakeLM(LM):
    """Says `reply` (or what the bigram model likes best) one byte a step, in a thread."""

    def __init__(
        self,
        name: str = "fake",
        *,
        reply: str | bytes | None = None,
        delay: float = 0.0,
        prefill: float = 0.0,
        context: int = 4096,
        breaks_at: int | None = None,
    ) -> None:
        self.name, self.context, self.pooling = name, context, "mean"
        self.reply, self.delay, self.prefill, self.breaks_at = reply, delay, prefill, breaks_at
        self.table = bigram_logprobs()
        self.seen: list[dict[str, Any]] = []
        self.active = self.peak = self.steps = self.cancels = self.prefills = 0
        self.closed = False
        self._lock = threading.Lock()

    def encode(
        self, prompt: Any, *, special: bool = True, parse: bool = False, **options: Any
    ) -> list[int]:
        if not isinstance(prompt, str):
            lines = [f"{m['role']}: {m['content']}" for m in prompt]
            prompt = "\n".join([*lines, "assistant: "])
        ids = [BOS] * special
        for part in re.split("(<bos>|<eos>)" if parse else "(?!)", prompt):
            ids += (parse and SPECIAL.get(part)) or [b + FIRST for b in part.encode()]
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        names = {BOS: b"<bos>", EOS: b"<eos>", 2: b"<pad>"}
        return b"".join(names.get(t) or bytes([t - FIRST]) for t in tokens).decode(errors="replace")

    def tokenizer_info(self) -> dict[str, Any]:
        return {
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "chat_template": None,
            "vocab_size": VOCABULARY,
        }

    def count_tokens(self, messages: Any, **options: Any) -> int:
        return len(self.encode(messages))

    def complete_stream(self, prompt: Any, **options: Any) -> Stream:
        self.seen.append({"prompt": prompt, **options})
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return self._start(ids, self.sampling(options), ())

    def chat_stream(self, messages: Any, **options: Any) -> Stream:
        self.seen.append({"messages": messages, **options})
        chat = {k: options.pop(k) for k in ChatOptions.__dataclass_fields__ if k in options}
        if chat.get("response_format"):
            raise KeifuError("response_format is not supported by this model yet")
        names = [tool["function"]["name"] for tool in chat.get("tools", ())]
        return self._start(self.encode(messages), self.sampling(options), names)

    async def ascore(self, prompt: Any, continuation: Any) -> Score:
        before, after = self.encode(prompt), self.encode(continuation, special=False)
        pairs = itertools.pairwise([before[-1], *after])
        scores = [self.scored(a, b, 1) for a, b in pairs]
        greedy = all(s.id == s.top[0].id for s in scores)
        return Score(tuple(s.logprob for s in scores), greedy, tuple(after))

    async def aembed(self, texts: Sequence[Any]) -> list[list[float]]:
        ids = [self.encode(t) if isinstance(t, str) else t for t in texts]
        return [[float(len(i)), float(sum(i)), 1.0, 0.5] for i in ids]

    def close(self) -> None:
        self.closed = True

    def scored(self, before: int, token: int, top: int) -> TokenLogprob:
        row = self.table[before]
        best = np.argsort(-row)[:top]
        others = tuple(self._one(int(i), float(row[i])) for i in best)
        mine = self._one(token, float(row[token]))
        return TokenLogprob(mine.id, mine.token, mine.logprob, others, mine.bytes)

    def _one(self, token: int, logprob: float | None) -> TokenLogprob:
        raw = bytes([token - FIRST]) if token >= FIRST else b""
        return TokenLogprob(token, self.decode([token]), logprob, (), raw)

    def _start(self, ids: list[int], sampling: Sampling, names: Sequence[str]) -> Stream:
        room = self.context - len(ids)
        if room < (sampling.max_tokens or 0) or room < 1:
            raise ContextLengthError(len(ids), self.context, sampling.max_tokens or 0)
        stop = threading.Event()
        stream = Stream(stop.set)
        work = (stream, stop, ids, sampling, names, room)
        threading.Thread(target=self._run, args=work, daemon=True).start()
        return stream

    def _run(self, stream: Stream, stop: threading.Event, *work: Any) -> None:
        with self._lock:
            self.active += 1
            self.peak = max(self.peak, self.active)
        failed: Exception | None = None
        try:
            self._generate(stream, stop, *work)
        except Exception as error:
            failed = error
        with self._lock:
            self.active -= 1
        stream.close(failed)

    def _generate(
        self,
        stream: Stream,
        stop: threading.Event,
        ids: list[int],
        sampling: Sampling,
        names: Sequence[str],
        room: int,
    ) -> None:
        self.prefills += 1
        until = time.monotonic() + self.prefill
        while time.monotonic() < until and not stop.is_set():
            time.sleep(0.005)
        if sampling.prompt_logprobs is not None and ids:
            pairs = itertools.pairwise(ids)
            rest = [self.scored(a, b, sampling.prompt_logprobs) for a, b in pairs]
            stream.put(Delta(prompt_logprobs=(self._one(ids[0], None), *rest)))
        limit = min(room, room if sampling.max_tokens is None else sampling.max_tokens)
        for index in range(sampling.n):
            self._output(stream, stop, index, ids, sampling, names, limit)

    def _output(
        self,
        stream: Stream,
        stop: threading.Event,
        index: int,
        ids: list[int],
        sampling: Sampling,
        names: Sequence[str],
        limit: int,
    ) -> None:
        reply = self.reply.encode() if isinstance(self.reply, str) else self.reply
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        reader = ToolReader(HERMES, names) if names else None
        last, text, count, finish = (ids or [BOS])[-1], "", 0, "length"
        ended: str | None = None
        called = False
        while count < limit:
            if stop.is_set():
                self.cancels += 1
                finish = "cancelled"
                break
            if self.breaks_at == count:
                raise RuntimeError("secret /etc/path in a traceback")
            token = self._next(reply, count, last)
            if token == EOS:
                finish = "stop"
                break
            scores = ()
            if sampling.logprobs is not None:
                scores = (self.scored(last, token, sampling.logprobs),)
            piece = decoder.decode(bytes([token - FIRST]))
            text, count, last = text + piece, count + 1, token
            self.steps += 1
            calls: tuple[ToolCall, ...] = ()
            if reader:
                piece, calls = reader.feed(piece)
                called = called or bool(calls)
            ended = next((s for s in sampling.stop if text.endswith(s)), None)
            if ended:  # single-character stop strings are all that these tests use
                piece, finish = piece.removesuffix(ended), "stop"
            out = Delta(index, piece, (token,), scores, tool_calls=calls)
            stream.put(out)
            if ended:
                break
            if self.delay:
                time.sleep(self.delay)
        piece, calls = reader.close() if reader else ("", ())
        called = called or bool(calls)
        if called and finish == "stop":
            finish = "tool_calls"
        usage = Usage(len(ids), count, 0)
        last_delta = Delta(
            index, piece, (), (), None, calls, finish=finish, stop=ended, usage=usage
        )
        stream.put(last_delta)

    def _next(self, reply: bytes | None, count: int, last: int) -> int:
        if reply is not None:
            return reply[count] + FIRST if count < len(reply) else EOS
        start = FIRST + 32  # printable ASCII alone, so that text is one byte a token
        return start + int(np.argmax(self.table[last][start : FIRST + 127]))


class Running:
    """A server that runs in a thread: its address, its models and its gate."""

    def __init__(self, url: str, server: Server, loaded: dict[str, list[LM]]) -> None:
        self.url, self.server, self.loaded = url, server, loaded
        self.gate, self.models = server.shared.gate, server.shared.models
        self.http = httpx.Client(base_url=url, timeout=20, trust_env=False)

    def lm(self, source: str = "fake") -> FakeLM:
        lm = self.loaded[source][-1]
        assert isinstance(lm, FakeLM)
        return lm

    def chat(self, text: str = "hello", **fields: Any) -> httpx.Response:
        body = {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def wait(self, true: Any, seconds: float = 5.0) -> None:
        """Until `true()` is; fails after some seconds."""
        until = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < until, "nothing happened in time"
            time.sleep(0.01)

    def metric(self, name: str, **labels: str) -> float:
        """The one sample of /metrics that has this name and these labels."""
        answer = self.http.get("/metrics")
        families = text_string_to_metric_families(answer.raise_for_status().text)
        samples = [s for family in families for s in family.samples if s.name == name]
        (only,) = [s.value for s in samples if labels.items() <= s.labels.items()]
        return float(only)

    def still_good(self) -> None:
        """The invariant of every fault: the next good request is answered, nothing lingers."""
        answer = self.chat("again", max_tokens=4)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] >= 1
        self.wait(lambda: self.gate.admitted == 0 and self.gate.running == 0)


@contextmanager
def running(
    make: Any = FakeLM,
    *,
    sources: Sequence[str] = ("fake",),
    aliases: Sequence[str] = (),
    idle: float | None = None,
    strict: bool = False,
    ready: bool = True,
    access: Access | None = None,
    compat: Compat = "vllm",
    **limits: Any,
) -> Iterator[Running]:
    """A real uvicorn on a free port; `make(source)` is the loader."""
    loaded: dict[str, list[LM]] = {}

    def load(source: str) -> LM:
        lm: LM = make(source)
        loaded.setdefault(source, []).append(lm)
        return lm

    models = Models(offers(sources, aliases), load, idle)
    bounds = Limits(**limits)
    shared = service(models, limits=bounds, access=access, strict=strict, compat=compat)
    bound = listen("127.0.0.1", 0)
    server = Server(build(shared), shared)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    house = Running(f"http://127.0.0.1:{bound.getsockname()[1]}", server, loaded)
    try:
        house.wait(lambda: server.started and (models.started or models.failure or not ready))
        yield house
    finally:
        house.http.close()
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"
