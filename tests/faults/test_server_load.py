"""Rows 20 to 24 of the fault table: clients that leave or do not read, crowds, deadlines, signals.

Each ends with a good request being answered, or with the process gone as it should be.
"""

from __future__ import annotations

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
from typing import Any

import httpx
import pytest

from keifu.server.errors import ApiError
from keifu.server.gate import Gate
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
        house.wait(lambda: house.metric("keifu_requests_cancelled_total") == 1)
        house.wait(lambda: lm.active == (1 if phase == "queue" else 0), 0.5)
        if phase == "queue":
            first.join()
            assert lm.prefills == 1
        elif phase == "decode":
            assert lm.cancels == 1
            assert lm.steps < 200
        lm.prefill = 0
        house.still_good()
        assert house.metric("keifu_requests_cancelled_total") == 1
        for prefix in ("keifu_", "vllm:"):
            ended = f"{prefix}request_success_total"
            assert house.metric(ended, finished_reason="abort") == 1


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
        house.wait(lambda: house.metric("keifu_requests_cancelled_total") == 1)
        lm.reply = "short"
        house.still_good()


class Waiting(FakeLM):
    """Says nothing before `go` is set."""

    go = threading.Event()

    def _generate(self, *work) -> None:  # type: ignore[no-untyped-def]
        self.go.wait(20)
        super()._generate(*work)


def test_22_two_hundred_at_once() -> None:
    with running(lambda s: Waiting(s, reply="abcde"), parallel=4, queue=64) as house:
        house.lm().go.clear()
        answers = _crowd(house, 200)
        refused = [answer for answer in answers if answer["status"] == 429]
        admitted = [answer for answer in answers if answer["status"] == 200]
        assert house.lm().peak <= 4
        assert (len(admitted), len(refused)) == (68, 132)
        texts = {answer["body"]["choices"][0]["message"]["content"] for answer in admitted}
        assert texts == {"abcde"}
        assert all(int(answer["headers"]["retry-after"]) >= 1 for answer in refused)
        assert {answer["body"]["error"]["code"] for answer in refused} == {"queue_full"}
        house.still_good()


def test_22_newcomers_to_a_full_house_are_refused_in_fifty_milliseconds() -> None:
    """While 68 wait or run, each further request is told so at once."""
    with running(lambda s: Waiting(s, reply="abcde"), parallel=4, queue=64) as house:
        house.lm().go.clear()
        with ThreadPoolExecutor(68) as clients:
            held = [clients.submit(house.chat) for _ in range(68)]
            house.wait(lambda: house.gate.admitted == 68, 20)
            waits = []
            for _ in range(25):
                began = time.monotonic()
                answer = house.chat()
                waits.append(time.monotonic() - began)
                assert answer.status_code == 429
                assert int(answer.headers["retry-after"]) >= 1
            house.lm().go.set()
            assert {done.result().status_code for done in held} == {200}
        assert statistics.median(waits) < 0.05
        house.still_good()


@pytest.mark.slow  # a matter of milliseconds, for a machine that does nothing else
def test_22_a_crowd_is_refused_in_fifty_milliseconds() -> None:
    with running(lambda s: Waiting(s, reply="abcde"), parallel=4, queue=64) as house:
        lm, clock = house.lm(), _clock(house.gate)
        waits = []
        for _ in range(9):
            clock.clear()
            lm.go.set()
            house.still_good()
            lm.go.clear()
            answers = _crowd(house, 200)
            began, *told = clock
            refused = [answer["seconds"] for answer in answers if answer["status"] == 429]
            waits.append(min(statistics.median(refused), statistics.median(told) - began))
            if waits[-1] < 0.05:
                break
        assert min(waits) < 0.05


def _clock(gate: Gate) -> list[float]:
    """Processor seconds of the server's own thread at its first admission and at each refusal.

    On an idle machine these are the times that clients see; a busy one stretches only the latter.
    """
    found: list[float] = []
    admit = gate.admit

    @contextmanager
    def timed() -> Iterator[None]:
        if not found:
            found.append(time.thread_time())
        try:
            with admit():
                yield
        except ApiError as error:
            if error.status == 429:
                found.append(time.thread_time())
            raise

    gate.admit = timed  # type: ignore[method-assign]
    return found


def _crowd(house: Running, size: int) -> list[dict[str, Any]]:
    """What so many clients are told; nobody leaves before all are in or refused."""
    root, port = Path(__file__).parents[2], house.url.rsplit(":")[-1]
    refused = house.gate.refused
    arguments = [sys.executable, "-m", "tests.server.crowd", port, str(size)]
    with subprocess.Popen(arguments, cwd=root, stdout=subprocess.PIPE) as clients:
        try:
            house.wait(lambda: house.gate.refused - refused + house.gate.admitted == size, 20)
        finally:
            house.lm().go.set()
        answers: list[dict[str, Any]] = json.loads(clients.communicate(timeout=20)[0])
    return answers


def test_22_a_full_house_refuses_at_once_and_serves_in_order() -> None:
    with running(lambda source: Waiting(source, reply="ab"), parallel=1, queue=3) as house:
        go = house.lm().go
        go.clear()

        def ask(number: int) -> None:
            assert house.chat(str(number)).status_code == 200

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
        # In the order that the model was asked: clients may notice their answers in any.
        assert [seen["messages"][0]["content"] for seen in house.lm().seen] == list("0123")
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
