"""Rows 20 to 24 of the fault table: clients that leave or do not read, crowds, deadlines, signals.

Each ends with a good request being answered, or with the process gone as it should be.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.server.harness import FakeLM, Running, running

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("phase", ["queue", "prefill", "decode"])
def test_20_a_client_that_leaves_is_not_worked_for(phase: str, stream: bool) -> None:
    def make(source: str) -> FakeLM:
        slow = 30 if phase == "prefill" else 0
        return FakeLM(source, reply="x" * 3000, delay=0.01, prefill=slow)

    with running(make, parallel=1) as house:
        lm = house.lm()
        first = threading.Thread(target=lambda: house.chat(max_tokens=60))
        if phase == "queue":
            first.start()
            house.wait(lambda: lm.active == 1)
        with httpx.Client(base_url=house.url, trust_env=False) as client:
            body = {"messages": USER, "stream": stream}
            request = client.build_request("POST", CHAT, json=body, timeout=0.3)
            with suppress(httpx.TimeoutException):
                answer = client.send(request, stream=True)
                next(answer.iter_raw(), None)
        house.wait(lambda: house.gate.cancelled == 1)
        house.wait(lambda: lm.active == (1 if phase == "queue" else 0), 0.5)
        if phase == "queue":
            first.join()
            assert lm.prefills == 1
        elif phase == "decode":
            assert lm.cancels == 1
            assert lm.steps < 200
        lm.prefill = 0
        house.still_good()


def test_21_a_reader_that_does_not_read() -> None:
    def make(source: str) -> FakeLM:
        return FakeLM(source, reply="y" * 400_000, context=2**20)

    with running(make, write_seconds=0.4, parallel=1) as house:
        lm = house.lm()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", int(house.url.rsplit(":")[-1])))
            body = json.dumps({"messages": USER, "stream": True}).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            house.wait(lambda: lm.active == 1)
            house.wait(lambda: house.gate.admitted == 0, 20)
            house.wait(lambda: lm.active == 0)
        lm.reply = "short"
        house.still_good()


def test_22_two_hundred_at_once() -> None:
    def make(source: str) -> FakeLM:
        return FakeLM(source, reply="abcde", delay=0.002)

    with running(make, parallel=4, queue=64) as house:
        admitted, refused = asyncio.run(_crowd(house, 200))
        assert house.lm().peak <= 4
        assert len(admitted) >= 68
        assert len(admitted) + len(refused) == 200
        assert all(answer.status_code == 200 for answer, _ in admitted)
        assert {answer.json()["choices"][0]["message"]["content"] for answer, _ in admitted} == {
            "abcde"
        }
        assert all(int(answer.headers["retry-after"]) >= 1 for answer, _ in refused)
        assert {answer.json()["error"]["code"] for answer, _ in refused} == {"queue_full"}
        house.still_good()


async def _crowd(
    house: Running, size: int
) -> tuple[list[tuple[httpx.Response, float]], list[tuple[httpx.Response, float]]]:
    limits = httpx.Limits(max_connections=size)
    async with httpx.AsyncClient(
        base_url=house.url, limits=limits, timeout=60, trust_env=False
    ) as client:

        async def ask() -> tuple[httpx.Response, float]:
            began = time.monotonic()
            answer = await client.post(CHAT, json={"messages": USER})
            return answer, time.monotonic() - began

        answers = await asyncio.gather(*[ask() for _ in range(size)])
    admitted = [pair for pair in answers if pair[0].status_code != 429]
    return admitted, [pair for pair in answers if pair[0].status_code == 429]


def test_22_a_full_house_refuses_at_once_and_serves_in_order() -> None:
    go = threading.Event()

    class Waiting(FakeLM):
        def _generate(self, *work) -> None:  # type: ignore[no-untyped-def]
            go.wait(20)
            super()._generate(*work)

    with running(lambda source: Waiting(source, reply="ab"), parallel=1, queue=3) as house:
        order: list[int] = []

        def ask(number: int) -> None:
            assert house.chat(str(number)).status_code == 200
            order.append(number)

        with ThreadPoolExecutor(4) as pool:
            try:
                for number in range(4):
                    pool.submit(ask, number)
                    house.wait(lambda n=number: house.gate.admitted > n)
                times = []
                for _ in range(9):
                    began = time.monotonic()
                    answer = house.chat()
                    times.append(time.monotonic() - began)
                    assert answer.status_code == 429
                    assert int(answer.headers["retry-after"]) >= 1
                assert statistics.median(times) < 0.05
            finally:
                go.set()
        assert order == [0, 1, 2, 3]
        house.still_good()


def test_23_deadlines() -> None:
    def make(source: str) -> FakeLM:
        return FakeLM(source, reply="z" * 3000, delay=0.02)

    with running(make, parallel=1, deadline=0.5, grace=1) as house:
        answer = house.chat()
        (choice,) = answer.json()["choices"]
        assert choice["finish_reason"] == "length"
        assert 1 <= len(choice["message"]["content"]) < 100
        with ThreadPoolExecutor(2) as pool:
            statuses = sorted(a.status_code for a in pool.map(lambda _: house.chat(), range(2)))
        assert statuses in ([200, 503], [200, 200])
        house.still_good()


def test_23_a_model_that_hangs() -> None:
    class Hung(FakeLM):
        def _generate(self, stream, stop, *work) -> None:  # type: ignore[no-untyped-def]
            if self.reply == "hang":
                time.sleep(3)  # deaf to cancellation
            super()._generate(stream, stop, *work)

    with running(lambda s: Hung(s, reply="hang"), deadline=0.2, grace=0.2) as house:
        began = time.monotonic()
        answer = house.chat()
        assert answer.status_code == 503
        assert time.monotonic() - began < 1.5
        house.lm().reply = "good"
        house.still_good()


@contextmanager
def process(seconds: float, drain: float) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A server process whose answers take so many seconds."""
    root = Path(__file__).parents[2]
    arguments = [sys.executable, "-m", "tests.server.process", str(seconds), str(drain)]
    with subprocess.Popen(
        arguments, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")
            with httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
                while client.get("/health").status_code != 200:
                    time.sleep(0.02)
                yield server, client
        finally:
            server.kill()


def busy(client: httpx.Client) -> bool:
    running: int = client.get("/health").json()["requests"]["running"]
    return running == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_24_the_first_signal_drains(number: signal.Signals) -> None:
    with process(1.0, 10) as (server, client), ThreadPoolExecutor(1) as pool:
        running_one = pool.submit(client.post, CHAT, json={"messages": USER})
        while not busy(client):
            time.sleep(0.02)
        server.send_signal(number)
        time.sleep(0.2)
        refused = client.post(CHAT, json={"messages": USER})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert client.get("/health").json()["status"] == "draining"
        done = running_one.result()
        assert done.status_code == 200
        assert len(done.json()["choices"][0]["message"]["content"]) == 50
        assert server.wait(5) == 0


@pytest.mark.parametrize("signals", [1, 2])
def test_24_the_drain_is_bounded_and_a_second_signal_is_immediate(signals: int) -> None:
    with process(60, 0.5) as (server, client), ThreadPoolExecutor(1) as pool:
        pool.submit(client.post, CHAT, json={"messages": USER})
        while not busy(client):
            time.sleep(0.02)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        if signals == 2:
            time.sleep(0.1)
            began = time.monotonic()
            server.send_signal(signal.SIGTERM)
        code = server.wait(10)
        least, most = (0.4, 5.0) if signals == 1 else (0.0, 0.4)
        assert least <= time.monotonic() - began < most
        assert code == (0 if signals == 1 else 128 + signal.SIGTERM)
