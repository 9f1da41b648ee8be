"""Load on servers: when requests leave, what is asked, and that a stall is not left out."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keifu.lm
from keifu.core.errors import KeifuError
from keifu.lm.latency import Record
from keifu.lm.openai import OpenAILM
from keifu.lm.openloop import Arrival, Load, LoadOptions, arrivals, measure
from keifu.lm.remote import RemoteOptions
from keifu.lm.texts import GUESS, Texts, source_text
from keifu.lm.transport import submit
from tests.server.harness import FakeLM, running

IDS = Texts(list(range(5000)))


def planned(seed: int = 0, texts: Texts = IDS, **options: Any) -> list[Arrival]:
    given = LoadOptions(**{"rate": (50.0,), "input": ("8",), **options})
    return arrivals(given.rate[0], given, texts, random.Random(seed))


def test_arrivals_are_a_poisson_process() -> None:
    plan = planned(requests=4000)
    gaps = np.diff([a.at for a in plan])
    assert plan[0].at == 0
    # An exponential's mean and deviation are both 1/rate; four standard errors either way.
    assert gaps.mean() == pytest.approx(1 / 50, rel=4 / np.sqrt(4000))
    assert gaps.std() == pytest.approx(1 / 50, rel=0.1)
    assert np.mean(gaps > 1 / 50) == pytest.approx(np.exp(-1), abs=0.03)
    assert [a.at for a in planned(requests=9)] == [a.at for a in planned(requests=9)]
    assert [a.at for a in planned(1, requests=9)] != [a.at for a in planned(requests=9)]


def test_requests_and_seconds_both_end_it() -> None:
    assert len(planned(requests=7)) == 7
    short = planned(seconds=2.0)
    assert short[-1].at <= 2 < short[-1].at + 1
    assert len(planned(seconds=2.0, requests=5)) == 5
    assert len(planned(rate=(0.001,), seconds=0.01)) == 1
    assert planned(rate=(1.0,))[-1].at <= 30


def test_lengths_are_drawn_from_what_is_named() -> None:
    plan = planned(requests=600, input=("16", "32-40"), output=("3", "5-6"))
    inputs = [len(a.prompt) for a in plan]
    assert set(inputs) == {16, *range(32, 41)}
    assert 230 < inputs.count(16) < 370  # half of them
    assert {a.output for a in plan} == {3, 5, 6}


def test_prompts_share_what_is_asked_and_no_more() -> None:
    prompts = [a.prompt for a in planned(requests=40, input=("100",), shared=0.25)]
    assert all(p[:25] == IDS.whole[:25] for p in prompts)
    assert len({p[25] for p in prompts}) > 30
    whole = [a.prompt for a in planned(requests=3, input=("100",), shared=1.0)]
    assert whole[0] == whole[1] == whole[2] == IDS.whole[:100]
    assert Texts("abc", 2.0).cut(4, 0.5, random.Random(0))[:4] == "abca"  # round again at its end


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate": (0.0,)}, r"--rate 0\.0 is not allowed"),
        ({"rate": ()}, r"--rate \(nothing\) is not allowed"),
        ({"rate": (float("nan"),)}, "--rate nan is not allowed"),
        ({"input": ("12x",)}, "--input 12x is not allowed: numbers and ranges"),
        ({"output": ("9-3",)}, "--output 9-3 is not allowed"),
        ({"shared": 1.5}, r"--shared 1\.5 is not allowed"),
        ({"concurrency": 0}, "--concurrency 0 is not allowed"),
        ({"slo": ("tfft:5",)}, "tfft"),
        ({"slo": ("ttft:soon",)}, "--slo ttft:soon is not allowed: milliseconds"),
        ({"slo": ("ttft",)}, "--slo ttft is not allowed"),
    ],
)
def test_options_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(KeifuError, match=message):
        LoadOptions(**wrong)


def test_texts_of_files(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one  two\nthree ")
    assert source_text(file) == "one two three"
    file.write_text(" \n")
    with pytest.raises(KeifuError, match="holds no text"):
        source_text(file)
    with pytest.raises(KeifuError, match="cannot be read"):
        source_text(tmp_path / "gone.txt")
    assert len(source_text(None)) > 400_000


def chunk(text: str = "", finish: str | None = None, **more: Any) -> bytes:
    choices = [{"index": 0, "text": text, "finish_reason": finish}]
    return f"data: {json.dumps({'choices': choices, **more})}\n\n".encode()


Serve = Callable[[asyncio.StreamWriter, int], Awaitable[None]]


@contextmanager
def server(serve: Serve) -> Iterator[str]:
    """A server whose answer to its n-th request is what `serve` writes after the head."""
    loop, ready, count = asyncio.new_event_loop(), threading.Event(), iter(range(10**6))
    found: dict[str, Any] = {}

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
        await serve(writer, next(count))
        writer.close()

    async def main() -> None:
        found["server"] = await asyncio.start_server(client, "127.0.0.1", 0)
        ready.set()

    def run() -> None:
        loop.run_until_complete(main())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield f"http://127.0.0.1:{found['server'].sockets[0].getsockname()[1]}/v1"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        found["server"].close()
        loop.close()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


def drive(url: str, plan: list[Arrival], **options: Any) -> list[Record]:
    lm = OpenAILM("m", RemoteOptions(base_url=url, retries=0, timeout=options.pop("timeout", 30.0)))
    try:
        return submit(Load(lm, LoadOptions(**options)).drive(plan)).result()
    finally:
        lm.close()


def every(seconds: float, number: int) -> list[Arrival]:
    return [Arrival(i * seconds, "text", 1) for i in range(number)]


STALL = 1.0


@contextmanager
def stalling() -> Iterator[str]:
    """Answers at once, one after the other, but takes a second over the first."""
    turn = asyncio.Lock()

    async def serve(writer: asyncio.StreamWriter, number: int) -> None:
        async with turn:
            await asyncio.sleep(STALL if number == 0 else 0)
            writer.write(HEAD + chunk("a", "stop") + b"data: [DONE]\n\n")
            await writer.drain()

    with server(serve) as url:
        yield url


@pytest.mark.parametrize("concurrency", [None, 1])
def test_a_stall_counts_for_everyone_it_holds_up(concurrency: int | None) -> None:
    """Ten requests are due in the stalled second; a closed loop would have seen one slow answer."""
    with stalling() as url:
        records = drive(url, every(0.1, 10), concurrency=concurrency)
    assert not any(r.failed for r in records)
    for number, record in enumerate(records):
        # Whoever is due within the stall waits for its end.
        assert record.ttft >= STALL - 0.1 * number - 0.02
    seen_by_a_closed_loop = [r.pieces[0] - r.sent for r in records]
    if concurrency:
        assert sorted(seen_by_a_closed_loop)[len(records) // 2] < STALL / 4
        assert max(r.sent - r.due for r in records) > STALL / 2
    else:
        assert records[-1].sent < records[0].end  # nobody waited for an answer


def test_failures_are_counted_with_their_reasons() -> None:
    ends = [
        HEAD
        + chunk("a")
        + chunk("b", "length", usage={"prompt_tokens": 3, "completion_tokens": 9}),
        HEAD + chunk("a"),
        HEAD + b"data: {nonsense\n\n",
        HEAD + b'data: {"choices": [7]}\n\n',
        HEAD + b'data: {"error": {"message": "out of luck"}}\n\n',
        b"HTTP/1.1 429 Too Many\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
        b'{"error": {"message": "come again"}}',
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\nhi",
    ]

    async def serve(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(ends[number] if number < len(ends) else HEAD)
        await writer.drain()
        if number == len(ends):
            await asyncio.sleep(5)

    with server(serve) as url:
        records = [drive(url, every(0, 1), timeout=1.0)[0] for _ in range(len(ends) + 1)]
    good, *failed = records
    assert (good.failed, good.prompt_tokens, good.output_tokens) == ("", 3, 9)
    assert len(good.pieces) == 2
    words = ["broke off", "malformed JSON", "malformed chunk", "out of luck", "come again",
             "not an event stream", "did not finish within 1 s"]  # fmt: skip
    for record, word in zip(failed, words, strict=True):
        assert word in record.failed
        assert record.end >= record.sent


def test_a_server_of_ours_at_two_rates() -> None:
    """A byte is a token to the fake model, and it never ends by itself."""
    with running(lambda s: FakeLM(s, delay=0.002), parallel=8) as house:
        lm = keifu.lm.load(f"{house.url}/v1", retries=0)
        assert isinstance(lm, OpenAILM)
        options = LoadOptions(
            rate=(20.0, 40.0), requests=6, input=("5", "9"), output=("4",), slo=("e2e:60000",)
        )
        told: list[str] = []
        found = measure(lm, options, told=told.append)
        json.dumps(found)
        seen = [len(each["prompt"]) for each in house.lm().seen]
        lm.close()
    assert found["settings"]["prompts"] == "token ids of the text"
    assert told[1] == "6 requests at 20 a second"
    for row in found["rows"]:
        assert (row["completed"], row["failed"], row["output_tokens"]) == (6, 0, 24)
        assert row["goodput"] == row["achieved"] > 0
        assert row["tpot"]["p50"] > 0
        assert row["ttft"]["p99"] <= row["e2e"]["p99"]
    assert len(seen) == 13
    assert set(seen[1:]) <= {5, 9}
    assert found["rows"][0]["prompt_tokens"] == sum(seen[1:7])


def test_conversations_and_servers_without_a_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(lambda s: FakeLM(s), parallel=4) as house:
        lm = keifu.lm.load(f"{house.url}/v1", retries=0)
        assert isinstance(lm, OpenAILM)
        monkeypatch.setattr("keifu.lm.texts.PIECE", 10**9)
        options = LoadOptions(rate=(50.0,), requests=2, input=("10",), output=("2",), chat=True)
        assert measure(lm, options)["rows"][0]["completed"] == 2
        content = house.lm().seen[-1]["messages"][0]["content"]
        assert len(content) == 10
        texts = Texts.of(lm, "some text", ids=True)
        assert texts.whole == [b + 3 for b in b"some text"]
        lm.close()
    gone = OpenAILM("m", RemoteOptions(base_url="http://127.0.0.1:9/v1", retries=0))
    guessed = Texts.of(gone, "x" * 100, ids=True)
    assert guessed.told.endswith("the server does not tokenize")
    assert len(guessed.cut(5, 0, random.Random(0))) == 5 * GUESS
    with pytest.raises(KeifuError, match="the server does not answer: cannot reach"):
        measure(gone, LoadOptions(requests=1))
