"""The network's bad days: retries, limits, broken streams, cancellation, keys that stay secret."""

from __future__ import annotations

import asyncio
import email.utils
import socket
import threading
import time
from typing import Any

import pytest

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.lm import transport
from keifu.lm.errors import AuthenticationError, RateLimited, RemoteError, RemoteTimeout
from keifu.lm.openai import OpenAILM
from keifu.lm.remote import RemoteOptions
from tests.lm.fake_server import FakeServer, sse

ASK = [{"role": "user", "content": "hi"}]
KEY = "sk-0123456789"


def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


def model(server: FakeServer, **options: Any) -> OpenAILM:
    return OpenAILM("m", RemoteOptions(base_url=f"{server.url}/v1", api_key=KEY, **options))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, not waited for."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(transport.asyncio, "sleep", sleep)
    return found


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_a_busy_server_is_asked_again(server: FakeServer, waits: list[float], status: int) -> None:
    busy = server.json({"error": {"message": "busy"}}, status)
    server.say(busy, busy, server.sse(chunk("ok", "stop"), done=True))
    assert model(server).chat(ASK).text == "ok"
    assert len(server.requests) == 3
    assert server.bodies[0] == server.bodies[2]
    assert 0.375 <= waits[0] <= 0.5
    assert 0.75 <= waits[1] <= 1.0


def test_retries_end(server: FakeServer, waits: list[float]) -> None:
    server.say(server.json({"error": {"message": "still busy", "code": "overloaded"}}, 503))
    with pytest.raises(RemoteError, match=r"127.0.0.1:\d+: still busy \(HTTP 503\)") as caught:
        model(server, retries=3).chat(ASK)
    assert len(server.requests) == 4
    assert caught.value.status == 503
    assert caught.value.code == "overloaded"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 302])
def test_other_refusals_are_final(server: FakeServer, waits: list[float], status: int) -> None:
    server.say(server.json({"error": {"message": "no"}}, status, location="http://127.0.0.1:9/"))
    with pytest.raises(RemoteError) as caught:
        model(server).chat(ASK)
    assert caught.value.status == status
    assert isinstance(caught.value, AuthenticationError) == (status in (401, 403))
    assert len(server.requests) == 1
    assert waits == []


def test_the_server_says_when_and_whether(server: FakeServer, waits: list[float]) -> None:
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    server.say(
        server.json({}, 429, retry_after="7"),
        server.json({}, 503, retry_after=soon),
        server.json({}, 429, **{"retry-after-ms": "250"}),
        server.json({}, 503, retry_after="-5"),
        server.json({}, 400, x_should_retry="true"),
        server.sse(chunk("ok", "stop"), done=True),
    )
    assert model(server, retries=9).chat(ASK).text == "ok"
    assert waits[0] == 7
    assert 28 <= waits[1] <= 30
    assert waits[2] == 0.25
    assert 3 <= waits[3] <= 4  # a senseless wait is ignored: the fourth backoff
    server.say(server.json({}, 500, x_should_retry="false"))
    with pytest.raises(RemoteError):
        model(server).chat(ASK)
    assert len(server.requests) == 1


def test_a_long_wait_is_the_callers_to_make(server: FakeServer, waits: list[float]) -> None:
    server.say(server.json({"error": {"message": "quota"}}, 429, retry_after="3600"))
    with pytest.raises(RateLimited, match="quota") as caught:
        model(server).chat(ASK)
    assert caught.value.retry_after == 3600
    assert waits == []


def test_nobody_listens(waits: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lm = OpenAILM("m", RemoteOptions(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY))
    with pytest.raises(RemoteError, match=f"cannot reach 127.0.0.1:{port}"):
        lm.chat(ASK)
    assert len(waits) == 2


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (
            {
                "message": "This model's maximum context length is 4097 tokens. However, your "
                "messages resulted in 5000 tokens. Please reduce the length of the messages.",
                "code": "context_length_exceeded",
            },
            (5000, 4097),
        ),
        ({"message": "prompt is too long: 210000 tokens > 200000 maximum"}, (210000, 200000)),
        (
            {
                "message": "The input token count (1048577) exceeds the maximum number of tokens "
                "allowed (1048576).",
                "status": "INVALID_ARGUMENT",
            },
            (1048577, 1048576),
        ),
        ({"message": "too long", "code": "context_length_exceeded"}, (0, 0)),
    ],
)
def test_too_long_is_one_error(server: FakeServer, error: Any, counts: tuple[int, int]) -> None:
    server.say(server.json({"error": error}, 400))
    with pytest.raises(ContextLengthError) as caught:
        model(server).chat(ASK)
    assert (caught.value.prompt_tokens, caught.value.context) == counts


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([sse(chunk("a")), sse({"error": {"message": "engine died"}})], "engine died"),
        ([sse(chunk("a")), sse("{not json")], "malformed JSON"),
        ([sse(chunk("a")), sse("[" * 100_000)], "malformed JSON"),
        ([sse(chunk("a")), sse("17")], "no object"),
        ([sse(chunk("a")), sse({"choices": [{"delta": 3, "index": 0}]})], "malformed chunk"),
        ([sse(chunk("a"))], "broke off"),
        ([sse(chunk("a")), b"data: \xff\xfe\n\n"], "UTF-8"),
        ([sse(chunk("a")), b"data: " + b"x" * (9 << 20)], "more than 8388608 bytes"),
    ],
)
def test_a_broken_stream_keeps_what_came(
    server: FakeServer, answer: list[bytes], message: str
) -> None:
    server.say(server.stream(answer))
    stream = iter(model(server).chat_stream(ASK))
    assert next(stream).text == "a"
    with pytest.raises(RemoteError, match=message):
        next(stream)
    assert len(server.requests) == 1
    server.say(server.sse(chunk("ok", "stop"), done=True))
    assert model(server).chat(ASK).text == "ok"


def test_answers_are_bounded(server: FakeServer) -> None:
    small = {"max_bytes": 10_000}
    server.say(server.stream([sse(chunk("x" * 100))] * 1000))
    with pytest.raises(RemoteError, match="more than 10000 bytes"):
        model(server, **small).chat(ASK)
    server.say(server.json({"data": ["x" * 20_000]}))
    with pytest.raises(RemoteError, match="more than 10000 bytes"):
        model(server, **small).embed(["a"])
    server.say(server.json({"error": {"message": "x" * 1_000_000}}, 400))
    with pytest.raises(RemoteError) as caught:
        model(server).chat(ASK)
    assert len(str(caught.value)) < 600


def test_not_an_event_stream_and_compression_are_refused(server: FakeServer) -> None:
    server.say(server.stream([b"<html>"], kind="text/html"))
    with pytest.raises(RemoteError, match="'text/html', not an event stream"):
        model(server).chat(ASK)
    server.say(server.json({"data": []}, content_encoding="gzip"))
    with pytest.raises(RemoteError, match="compressed"):
        model(server).embed(["a"])
    assert server.last.headers["accept-encoding"] == "identity"


def test_timeout_bounds_a_dripping_server(server: FakeServer) -> None:
    server.say(server.stream([b": ping\n\n"] * 1000, pause=0.05))
    start = time.monotonic()
    with pytest.raises(RemoteTimeout, match=r"did not finish within 0.3 s"):
        model(server, timeout=0.3).chat(ASK)
    assert time.monotonic() - start < 2
    assert server.disconnected.wait(2)


def test_cancel_closes_the_connection(server: FakeServer) -> None:
    server.say(server.stream([sse(chunk("a"))] * 1000, pause=0.02))
    stream = model(server).chat_stream(ASK)
    finishes = []
    for delta in stream:
        finishes.append(delta.finish)
        stream.cancel()
        stream.cancel()
    assert finishes[0] is None
    assert finishes[-1] == "cancelled"
    assert server.disconnected.wait(2)


def test_cancel_before_the_first_byte(server: FakeServer) -> None:
    release = threading.Event()
    server.say(lambda handler: release.wait(5) and None)
    stream = model(server).chat_stream(ASK, n=2)
    stream.cancel()
    result = stream.result()
    release.set()
    assert [c.finish for c in result.choices] == ["cancelled", "cancelled"]


def test_close_ends_what_runs_and_can_be_followed_by_more(server: FakeServer) -> None:
    server.say(server.stream([sse(chunk("a"))] * 1000, pause=0.02))
    lm = model(server)
    stream = lm.chat_stream(ASK)
    assert next(iter(stream)).text == "a"
    lm.close()
    assert stream.result().finish == "cancelled"
    assert server.disconnected.wait(2)
    server.say(server.sse(chunk("ok", "stop"), done=True))
    assert lm.chat(ASK).text == "ok"


def test_many_at_once_from_async_code(server: FakeServer) -> None:
    server.say(server.sse(chunk("ok", "stop"), done=True))
    lm = model(server)

    async def ask() -> list[str]:
        answers = await asyncio.gather(*(lm.achat(ASK) for _ in range(20)))
        return [a.text for a in answers]

    assert asyncio.run(ask()) == ["ok"] * 20
    lm.close()


def test_cancelling_an_awaited_embedding(server: FakeServer) -> None:
    release = threading.Event()
    server.say(lambda handler: release.wait(5) and None)

    async def ask() -> None:
        await asyncio.wait_for(model(server).aembed(["a"]), 0.1)

    with pytest.raises(TimeoutError):
        asyncio.run(ask())
    release.set()


def test_the_key_is_never_shown(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    server.say(server.json({"error": {"message": f"bad key {KEY} given"}}, 401))
    lm = model(server)
    with pytest.raises(AuthenticationError, match=r"bad key \*\*\* given") as caught:
        lm.chat(ASK)
    shown = [repr(lm), repr(lm.transport), repr(lm.transport.connection), repr(caught.value)]
    shown += [repr(RemoteOptions(api_key=KEY)), caplog.text]
    assert not [s for s in shown if KEY in s]
    assert server.last.headers["authorization"] == f"Bearer {KEY}"
    for bad in (" k", "k\n", "ключ"):
        with pytest.raises(AuthenticationError) as refused:
            OpenAILM("m", RemoteOptions(base_url=server.url, api_key=bad))
        assert bad.strip() not in str(refused.value).replace("key", "")


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://host/v1", "file:///etc/passwd", "http://", "host/v1", "http://u:p@host/v1"),
        *("http://a\\@b/v1", "http://host/v1?x=1", "http://[::1/v1", "http://h:99999999/v1"),
    ],
)
def test_odd_addresses_are_refused(url: str) -> None:
    with pytest.raises(KeifuError) as caught:
        OpenAILM("m", RemoteOptions(base_url=url))
    assert "u:p" not in str(caught.value)


def test_a_lone_surrogate_is_a_clear_error(server: FakeServer) -> None:
    with pytest.raises(KeifuError, match="cannot be written as JSON"):
        model(server).chat([{"role": "user", "content": "\ud800"}])
    assert server.requests == []
