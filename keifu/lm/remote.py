"""What the remote protocols share: the LM verbs over HTTP, options, context check, streams."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import dataclasses
import json
import os
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar, cast

from keifu.core.errors import KeifuError, unknown
from keifu.inference.constraint import Constraint
from keifu.inference.request import (
    Delta,
    Message,
    ParameterError,
    Sampling,
    Score,
    Timings,
)
from keifu.inference.stream import Stream
from keifu.lm.base import LM, ChatOptions, Prompt
from keifu.lm.budget import Budget, upper_bound
from keifu.lm.cards import KEY_VARIABLES, Card
from keifu.lm.errors import AuthenticationError, RemoteError, UncountableError
from keifu.lm.sse import Event
from keifu.lm.transport import Connection, Transport, submit

T = TypeVar("T")

_SAMPLING = {f.name: f.default for f in dataclasses.fields(Sampling)}
_CHAT = {f.name for f in dataclasses.fields(ChatOptions)}


@dataclass(frozen=True, kw_only=True)
class RemoteOptions:
    """What `keifu.load` takes for a remote model."""

    api_key: str | None = field(default=None, repr=False)
    """The key; left out, the vendor's environment variable."""
    base_url: str | None = None
    """Another address that speaks the same protocol; the vendor's key is then not sent unasked."""
    ctx: int | None = None
    """Most tokens of prompt and output together; a prompt beyond it is refused before sending."""
    max_output: int | None = None
    """Most tokens of one answer, where the vendor has such a limit."""
    timeout: float = 600.0
    """Seconds for one request with its retries and its whole answer."""
    retries: int = 2
    """How often to try again when the server is busy or the connection fails."""
    tokenizer: Callable[[str], Sequence[int]] | None = None
    """How the model cuts text, for counting without asking the server."""
    max_bytes: int = 64 << 20
    """Most bytes of one answer."""
    connections: int = 256
    """Most connections at once; further requests wait."""


@dataclass(frozen=True)
class Call:
    """One request as it goes out."""

    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    """Besides those of every request."""


@dataclass(frozen=True)
class Ask:
    """One request's options: checked, split, and only those that were given."""

    given: Mapping[str, Any]
    """Sampling fields that the caller (not a default) set."""
    sampling: Sampling
    chat: ChatOptions


class Decoder(Protocol):
    """Turns the events of one answer into deltas."""

    def feed(self, event: Event) -> Iterable[Delta]:
        """The deltas that this event completes."""
        ...

    def end(self) -> Iterable[Delta]:
        """The last deltas; raises if the answer was cut off."""
        ...


class RemoteLM(LM):
    """A model behind an HTTP API; a protocol adds how to say the request and read the answer."""

    protocol: ClassVar[str]
    vendor_url: ClassVar[str]
    url_variable: ClassVar[str]
    native_n: ClassVar[bool] = True
    """Whether one request may ask for several outputs."""
    embed_batch: ClassVar[int] = 1
    """Most texts that one request for embeddings takes."""

    def __init__(self, model: str, options: RemoteOptions, card: Card | None = None) -> None:
        self.model, self.card = model, card
        self.name = card.name if card else model
        self.context = options.ctx or (card.context if card else 0)
        self.max_output = options.max_output or (card.max_output if card else None)
        self.tokenizer = options.tokenizer
        url = (options.base_url or os.environ.get(self.url_variable) or self.vendor_url).rstrip("/")
        self.at_vendor = url == self.vendor_url
        key = options.api_key or self._key_from_environment(options.base_url is None)
        if key is None and self.at_vendor:
            raise AuthenticationError(
                f"{self.protocol} needs a key: "
                f"set {KEY_VARIABLES[self.protocol][0]} or pass api_key="
            )
        if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key):
            raise AuthenticationError("the API key holds spaces or characters no key has")
        connection = Connection(
            url=url,
            headers=self.headers(key),
            secret=key,
            timeout=options.timeout,
            retries=options.retries,
            max_bytes=options.max_bytes,
            connections=options.connections,
        )
        self._running: weakref.WeakSet[Future[None]] = weakref.WeakSet()
        self.transport = Transport(connection, card.farewell if card and self.at_vendor else "")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r}, url={self.transport.connection.url!r})"

    def _key_from_environment(self, vendors: bool) -> str | None:
        """The vendor's key only for the vendor's (or its variable's) address, else Keifu's own."""
        names = KEY_VARIABLES[self.protocol] if vendors else ("KEIFU_API_KEY",)
        return next((v for n in names if (v := os.environ.get(n))), None)

    @abstractmethod
    def headers(self, key: str | None) -> dict[str, str]:
        """Headers of every request."""

    @abstractmethod
    def chat_request(self, messages: Sequence[Message], ask: Ask) -> Call:
        """A streamed chat request."""

    @abstractmethod
    def decoder(self) -> Decoder:
        """A fresh decoder of its answer."""

    @abstractmethod
    async def count(self, messages: str | Sequence[Message], chat: ChatOptions) -> int:
        """Exact tokens of a prompt; UncountableError where nobody can say."""

    def complete_stream(self, prompt: Prompt, **options: Any) -> Stream:
        """Refused: this protocol has conversations only."""
        raise self.cannot("continue a raw text", "use chat")

    async def ascore(self, prompt: Prompt, continuation: Prompt) -> Score:
        """Refused: this protocol gives no log-probabilities of a given text."""
        raise self.cannot("score a given text", "use a local model, or an OpenAI-compatible server")

    def embed_request(self, texts: Sequence[Prompt]) -> Call:
        """A request for one vector a text. Refused: this protocol has no embeddings."""
        raise self.cannot("embed", "use an OpenAI-compatible or Gemini embedding model")

    def vectors(self, answer: Any) -> list[list[float]]:
        """What the answer holds; LookupError, TypeError or ValueError where it is malformed."""
        raise NotImplementedError

    async def aembed(self, texts: Sequence[Prompt]) -> list[list[float]]:
        """One vector a text, in their order, asked for in batches."""
        vectors: list[list[float]] = []
        for start in range(0, len(texts), self.embed_batch):
            batch = texts[start : start + self.embed_batch]
            call = self.embed_request(batch)
            answer = await self.on_loop(self.transport.json("POST", call.path, call.body))
            try:
                found = self.vectors(answer)
            except (LookupError, TypeError, ValueError):
                raise RemoteError(f"{self.name}: the embeddings answer is malformed") from None
            if len(found) != len(batch):
                raise RemoteError(f"{self.name}: {len(found)} embeddings for {len(batch)} texts")
            vectors += found
        return vectors

    def chat_stream(self, messages: Sequence[Message], **options: Any) -> Stream:
        """Answer a conversation; a mistake in the request raises here, before anything is sent."""
        ask = self.ask(options)
        check_messages(messages)
        try:
            call = self.chat_request(messages, ask)
        except KeyError as error:
            raise KeifuError(f"a message, tool or format lacks the field {error}") from None
        return self.start(call, messages, ask)

    def count_tokens(self, messages: str | Sequence[Message], **options: Any) -> int:
        """Exact tokens of a text or a conversation; may ask the server."""
        return submit(self.count(messages, self.ask(options).chat)).result()

    def close(self) -> None:
        """Close the connections; running requests end as cancelled."""
        for future in list(self._running):
            future.cancel()
        submit(self.transport.aclose()).result()

    def cannot(self, what: str, instead: str) -> KeifuError:
        """The one-line error for a verb that the protocol lacks."""
        return KeifuError(f"{self.name}: {self.protocol} cannot {what}; {instead}")

    def ask(self, options: Mapping[str, Any]) -> Ask:
        """Check and split a request's options; None is the same as leaving it out."""
        for key in options:
            if key not in _SAMPLING and key not in _CHAT:
                raise unknown("option", key, [*_SAMPLING, *_CHAT])
        given = {k: v for k, v in options.items() if k in _SAMPLING and v is not None}
        chat = {k: v for k, v in options.items() if k in _CHAT and v is not None}
        return Ask(given, self.sampling(given), ChatOptions(**chat))

    def translate(self, ask: Ask, names: Mapping[str, str]) -> dict[str, Any]:
        """Sampling fields under the protocol's names; one that it lacks is an error.

        Only what the caller set is sent, so that the server's own defaults stand. A field that
        the protocol lacks may be given if it asks for nothing (top_k=0).
        """
        body: dict[str, Any] = {}
        for key, value in ask.given.items():
            if key == "constraint":
                body |= self.constrain(value)
            elif key in names:
                body[names[key]] = list(value) if isinstance(value, tuple) else value
            elif value not in (_SAMPLING[key], {}):
                raise ParameterError(key, value, f"{self.protocol} has no such setting")
        return body

    def constrain(self, constraint: Constraint) -> dict[str, Any]:
        """The fields that ask for an output of some form; an error where the protocol has none."""
        why = f"{self.protocol} knows no outputs of this kind"
        raise ParameterError("constraint", constraint.kind, why)

    async def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work on the background loop from any other; cancelling cancels it there."""
        return await asyncio.wrap_future(submit(work))

    def start(self, call: Call, prompt: Prompt | Sequence[Message], ask: Ask) -> Stream:
        """Send a request (or n, where the protocol answers one at a time) and stream the answer."""
        futures: list[Future[None]] = []

        def cancel() -> None:
            futures[0].cancel()

        stream = Stream(cancel=cancel)
        open_outputs = set(range(ask.sampling.n))
        copies = 1 if self.native_n else ask.sampling.n

        async def answer(index: int) -> None:
            clock = _Clock()
            read = self.decoder()
            async with contextlib.aclosing(
                self.transport.events(call.path, call.body, call.headers)
            ) as events:
                async for event in events:
                    put(read.feed(event), index, clock)
            put(read.end(), index, clock)

        def put(deltas: Iterable[Delta], offset: int, clock: _Clock) -> None:
            for delta in deltas:
                moved = dataclasses.replace(clock.stamp(delta), index=delta.index + offset)
                if moved.finish:
                    open_outputs.discard(moved.index)
                stream.put(moved)

        async def work() -> None:
            await self._check_room(prompt, ask)
            await _all(answer(i) for i in range(copies))

        def done(future: Future[None]) -> None:
            if future.cancelled():
                for index in sorted(open_outputs):
                    stream.put(Delta(index=index, finish="cancelled"))
                stream.close()
            else:
                stream.close(future.exception())

        futures.append(submit(work()))
        self._running.add(futures[0])
        futures[0].add_done_callback(done)
        return stream

    async def _check_room(self, prompt: Prompt | Sequence[Message], ask: Ask) -> None:
        """Refuse what cannot fit before sending it; count only if a cheap bound cannot tell."""
        if not self.context:
            return None
        budget = Budget(limit=self.context, reserve=max(1, ask.sampling.max_tokens or 1))
        if not isinstance(prompt, str) and prompt and isinstance(prompt[0], int):
            return budget.check(len(prompt))
        read = cast("str | Sequence[Message]", prompt)
        bound = upper_bound(read, {"tools": ask.chat.tools} if ask.chat.tools else None)
        if bound is not None and bound <= budget.room:
            return None
        try:
            tokens = await self.count(read, ask.chat)
        except UncountableError:
            return None  # the server counts, and its refusal is the same error
        return budget.check(tokens)


class _Clock:
    """Times one output from its request."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._first: float | None = None

    def stamp(self, delta: Delta) -> Delta:
        """Note the first token; put the times on the last delta."""
        now = time.monotonic() - self._start
        if self._first is None:
            self._first = now
        if not delta.finish:
            return delta
        return dataclasses.replace(
            delta, timings=Timings(first_token=self._first, decode=now - self._first)
        )


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all; the first failure cancels the rest and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse what no protocol takes, with the place of the fault."""
    if not messages:
        raise KeifuError("there is no message to answer: give at least one")
    for index, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "developer", "user", "assistant", "tool"):
            raise KeifuError(
                f"message {index} has role {role!r}: "
                "give system, developer, user, assistant or tool"
            )
        if content is None or isinstance(content, str):
            continue
        if not isinstance(content, Sequence) or not all(isinstance(p, Mapping) for p in content):
            raise KeifuError(f"message {index}: its content must be a text or a list of parts")
        for part in content:
            if part.get("type") == "image_url":
                image = part.get("image_url")
                data_url(image if isinstance(image, str) else (image or {}).get("url", ""))


def data_url(url: str) -> tuple[str, str] | None:
    """(media type, base64 text) of a data: URL, None for a plain http(s) one, else an error."""
    if url.startswith("data:"):
        kind, comma, data = url[5:].partition(",")
        media, _, coding = kind.partition(";")
        if not comma or coding != "base64" or "/" not in media:
            raise KeifuError("an image's data URL must read data:TYPE/SUBTYPE;base64,DATA")
        try:
            base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise KeifuError(f"an image's data URL holds no base64: {error}") from None
        return media, data
    if not url.startswith(("https://", "http://")):
        raise KeifuError(f"{url[:60]!r} is no image address: give data:, https: or http:")
    return None


def text_of(content: object) -> str:
    """The text of a message's content that must be text alone."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(p.get("type") == "text" for p in content):
        return "".join(p["text"] for p in content)
    raise KeifuError("this message may hold text only")


def parse_json(text: str, what: str) -> Any:
    """JSON of a message's tool arguments, or an error that says whose."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise KeifuError(f"{what} are malformed JSON: {text[:80]!r}") from None
