"""The clients of the soak: every kind of request that a server sees, well-behaved and not."""

from __future__ import annotations

import asyncio
import json
import pydoc_data.topics
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
TEXT = " ".join(" ".join(pydoc_data.topics.topics.values()).split())
STOPPED = 4.0
"""Seconds of silence after which the whole machine, and not the server, must have stood still:
the server then ends what has waited too long, and that is no surprise."""
BUSY = (429, 503)
"""What a full house may answer to anything."""


class Clients:
    """So many clients that ask one thing after another until they are told to stop.

    `counts` has every kind and status; `surprises` what should not have been answered.
    """

    def __init__(self, url: str, number: int, seed: int) -> None:
        self.url, self.draw = url, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.surprises: list[str] = []
        self.tokens = 0
        self._number, self._over = number, asyncio.Event()
        self._http = self._client()
        self._pause = asyncio.Event()
        self._pause.set()
        self._busy = 0
        self._beat, self._stalls = time.monotonic(), 0
        self._since: dict[asyncio.Task[Any] | None, int] = {}

    async def run(self) -> None:
        """Until `stop`."""
        try:
            async with asyncio.TaskGroup() as group:
                beat = group.create_task(self._beats())
                clients = [group.create_task(self._one()) for _ in range(self._number)]
                await asyncio.wait(clients)
                beat.cancel()
        finally:
            await self._http.aclose()

    async def _one(self) -> None:
        while not self._over.is_set():
            await self._pause.wait()
            kind = self.draw.choices(list(KINDS), weights=[w for w, _ in KINDS.values()])[0]
            self._busy += 1
            self._since[asyncio.current_task()] = self._stalls
            try:
                await KINDS[kind][1](self, kind)
            except (httpx.TransportError, OSError) as error:
                self.surprised(kind, f"{type(error).__name__}: {error}")
            finally:
                self._busy -= 1

    def surprised(self, kind: str, what: str) -> None:
        """Note what should not have been answered to the request that this task has made."""
        if self._stopped() + self._stalls > self._since[asyncio.current_task()]:
            self.counts[f"{kind}, while all stood still"] += 1
        else:
            self.surprises.append(f"{kind}: {what}")

    def _stopped(self) -> bool:
        return time.monotonic() - self._beat > STOPPED

    async def _beats(self) -> None:
        """Notice when this process did not run at all, as on a machine that was suspended."""
        while True:
            self._stalls += self._stopped()
            self._beat = time.monotonic()
            await asyncio.sleep(1)

    async def quiet(self) -> None:
        """Pause all clients and wait until none asks."""
        self._pause.clear()
        while self._busy:
            await asyncio.sleep(0.05)

    async def close_connections(self) -> None:
        """Drop every connection that is kept open; call it while they are quiet."""
        await self._http.aclose()
        self._http = self._client()

    def _client(self) -> httpx.AsyncClient:
        # A connection goes before the server closes it (5 s): else both may act at once.
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=self._number, keepalive_expiry=1.0
        )
        return httpx.AsyncClient(base_url=self.url, timeout=300, limits=limits, trust_env=False)

    def go_on(self) -> None:
        self._pause.set()

    def stop(self) -> None:
        self._over.set()
        self._pause.set()

    async def told(self, kind: str, status: int, body: bytes, expected: tuple[int, ...]) -> None:
        """Count an answer; what was not expected is a surprise, and a full house is waited for."""
        self.counts[f"{kind} {status}"] += 1
        if status not in (*expected, *BUSY):
            self.surprised(kind, f"{status} {body[:200].decode(errors='replace')}")
        if status in BUSY:
            await asyncio.sleep(self.draw.uniform(0.2, 1.0))

    async def post(
        self, kind: str, path: str, body: object, expected: tuple[int, ...] = (200,), **more: Any
    ) -> dict[str, Any]:
        """One request, answered whole; {} unless the answer is 200."""
        answer = await self._http.post(path, json=body, **more)
        await self.told(kind, answer.status_code, answer.content, expected)
        if answer.status_code != 200:
            return {}
        found: dict[str, Any] = answer.json()
        self.tokens += (found.get("usage") or {}).get("completion_tokens") or 0
        return found

    async def streamed(self, kind: str, path: str, body: dict[str, Any], leave: int = 0) -> None:
        """One streamed request, read to its end or left after so many pieces."""
        seen = b""
        async with self._http.stream("POST", path, json={**body, "stream": True}) as answer:
            if answer.status_code != 200:
                await self.told(kind, answer.status_code, await answer.aread(), (200,))
                return
            number = 0
            async for line in answer.aiter_lines():
                number += line.startswith("data:")
                seen = line.encode() or seen
                if leave and number >= leave:
                    self.counts[f"{kind} left"] += 1
                    return
        self.tokens += number
        await self.told(kind, 200 if seen == b"data: [DONE]" else 500, seen, (200,))

    async def left(self, kind: str, path: str, body: object, seconds: float) -> None:
        """One request whose client leaves after so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.post(kind, path, body)
                return
        self.counts[f"{kind} left"] += 1

    async def raw(self, kind: str, sent: bytes, answered: bool) -> None:
        """Bytes on a connection of its own, which is closed after the answer or at once."""
        host, port = httpx.URL(self.url).host, httpx.URL(self.url).port
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(sent)
            await writer.drain()
            if answered:
                line = await asyncio.wait_for(reader.readline(), 300)
                status = int((line.split() or [b"", b"0"])[1])
                await self.told(kind, status, line, (400, 404, 405, 413, 415))
            else:
                await asyncio.sleep(self.draw.uniform(0, 0.2))
                self.counts[f"{kind} left"] += 1
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def text(self, least: int, most: int) -> str:
        """So many characters of real text."""
        size = self.draw.randint(least, most)
        start = self.draw.randrange(len(TEXT) - size)
        return TEXT[start : start + size]

    def messages(self, least: int = 20, most: int = 300) -> dict[str, Any]:
        """A conversation; one in three begins like all others of its kind."""
        system = {"role": "system", "content": TEXT[:1200]}
        user = {"role": "user", "content": "Explain: " + self.text(least, most)}
        shared = self.draw.random() < 1 / 3
        limit = self.draw.choice((2, 4, 8, 24, 64))
        return {"messages": [system, user] if shared else [user], "max_tokens": limit}


async def chat(c: Clients, kind: str) -> None:
    more = c.draw.choice(({}, {"logprobs": True, "top_logprobs": 3}, {"n": 3}, {"seed": 1}))
    await c.post(kind, CHAT, {**c.messages(), "temperature": c.draw.choice((0, 1.0)), **more})


async def chat_streamed(c: Clients, kind: str) -> None:
    await c.streamed(kind, CHAT, {**c.messages(), "n": c.draw.choice((1, 1, 2))})


async def completion(c: Clients, kind: str) -> None:
    body = {"prompt": c.text(10, 300), "max_tokens": 16, "n": c.draw.choice((1, 4))}
    salt = {"cache_salt": f"{c.draw.getrandbits(64):x}"} if c.draw.random() < 0.3 else {}
    await c.post(kind, COMPLETE, {**body, **salt})


async def several(c: Clients, kind: str) -> None:
    prompts = [c.text(10, 200) for _ in range(3)]
    await c.post(kind, COMPLETE, {"prompt": prompts, "max_tokens": 8})


async def long_prompt(c: Clients, kind: str) -> None:
    await c.streamed(kind, COMPLETE, {"prompt": c.text(2000, 6000), "max_tokens": 16})


async def scored(c: Clients, kind: str) -> None:
    body = {"prompt": c.text(50, 400), "max_tokens": 0, "echo": True, "logprobs": 1}
    await c.post(kind, COMPLETE, body)


async def constrained(c: Clients, kind: str) -> None:
    """JSON that follows a schema, which is new two times in three."""
    name = "name" if c.draw.random() < 1 / 3 else f"field{c.draw.randrange(10**9)}"
    schema = {
        "type": "object",
        "properties": {
            name: {"type": "string", "maxLength": 12},
            "sort": {"enum": ["a", "b", "c"]},
        },
        "required": [name, "sort"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}
    body = {**c.messages(20, 200), "max_tokens": 80, "response_format": wanted}
    found = await c.post(kind, CHAT, {**body, "temperature": 1.0})
    for choice in found.get("choices", ()):
        content = choice["message"]["content"]
        try:
            fits = set(json.loads(content)) == {name, "sort"}
        except ValueError:
            fits = False
        if not fits or choice["finish_reason"] != "stop":
            c.surprised(kind, f"{choice['finish_reason']} {content!r}")


async def pattern(c: Clients, kind: str) -> None:
    wanted = {"regex": f"[a-z]{{1,{c.draw.randint(4, 40)}}}@[a-z]{{1,8}}\\.(com|org)"}
    body = {**c.messages(20, 100), "max_tokens": 60, "structured_outputs": wanted}
    await c.post(kind, CHAT, body)


async def anthropic(c: Clients, kind: str) -> None:
    messages = [{"role": "user", "content": c.text(20, 300)}]
    await c.post(kind, "/v1/messages", {"model": "default", "messages": messages, "max_tokens": 16})


async def embedding(c: Clients, kind: str) -> None:
    texts = [c.text(20, 400) for _ in range(c.draw.randint(1, 4))]
    await c.post(kind, "/v1/embeddings", {"input": texts})


async def tokens(c: Clients, kind: str) -> None:
    await c.post(kind, "/tokenize", {"prompt": c.text(10, 5000)})


async def leaves_while_decoding(c: Clients, kind: str) -> None:
    body = {**c.messages(), "max_tokens": 400}
    await c.streamed(kind, CHAT, body, leave=c.draw.randint(2, 12))


async def leaves_early(c: Clients, kind: str) -> None:
    """In the queue, in its prompt or in its answer, as it happens."""
    body = {"prompt": c.text(1500, 5000), "max_tokens": 64}
    await c.left(kind, COMPLETE, body, c.draw.uniform(0.01, 0.8))


async def hangs_up(c: Clients, kind: str) -> None:
    """In the middle of its own request, or right after it."""
    body = json.dumps({"prompt": c.text(50, 500), "max_tokens": 20, "stream": True}).encode()
    head = f"POST {COMPLETE} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    whole = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    await c.raw(kind, whole[: c.draw.randint(1, len(whole))], False)


async def bad(c: Clients, kind: str) -> None:
    """What must be refused."""
    wrong: tuple[tuple[str, object], ...] = (
        (CHAT, {"messages": []}),
        (CHAT, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": -1}),
        (CHAT, {"messages": [{"role": "nobody", "content": "hi"}]}),
        (CHAT, {"messages": [{"role": "user", "content": "hi"}], "model": "nothing-here"}),
        (COMPLETE, {"prompt": c.text(80_000, 90_000), "max_tokens": 5}),
        (COMPLETE, {"prompt": [10**9], "max_tokens": 5}),
        (COMPLETE, {"prompt": "x", "temperature": 9}),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "guided_regex": "("}),
        ("/v1/nothing", {}),
    )
    path, body = c.draw.choice(wrong)
    await c.post(kind, path, body, (400, 404, 422))


async def not_json(c: Clients, kind: str) -> None:
    body = c.draw.choice((b"{", b'{"prompt": "' + b"x" * 5000, b"[" * 3000, b"\xff\xfe", b"null"))
    head = f"POST {COMPLETE} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    await c.raw(kind, f"{head}content-length: {len(body)}\r\n\r\n".encode() + body, True)


Kind = Callable[[Clients, str], Awaitable[None]]
KINDS: dict[str, tuple[int, Kind]] = {
    "chat": (10, chat),
    "chat, streamed": (10, chat_streamed),
    "completion": (8, completion),
    "several prompts": (3, several),
    "long prompt": (3, long_prompt),
    "scored": (3, scored),
    "constrained": (6, constrained),
    "pattern": (3, pattern),
    "anthropic": (3, anthropic),
    "embedding": (4, embedding),
    "tokenize": (3, tokens),
    "leaves while decoding": (6, leaves_while_decoding),
    "leaves early": (5, leaves_early),
    "hangs up": (4, hangs_up),
    "bad": (5, bad),
    "not JSON": (3, not_json),
}
"""Every kind with its share."""
