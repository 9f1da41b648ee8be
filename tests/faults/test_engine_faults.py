"""Rows 25 to 27 of the fault table: steps that fail, memory that is not there, models replaced."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import keifu
from keifu.cli.main import main
from keifu.core import machine
from keifu.core.errors import KeifuError
from keifu.inference.engine import Engine
from keifu.lm.base import LM
from keifu.lm.local import LocalLM
from keifu.nn.kernels.formats import Packed
from tests.inference.test_engine import byte_tokenizer
from tests.inference.test_prefixes import made
from tests.server.harness import FakeLM, Running, running

PROMPTS = [[7, 3, 60, 22, 9], [5, 5, 1], list(range(20, 50))]
BAD = [42, 8, 30]
ASKED: dict[str, Any] = {"max_tokens": 10, "temperature": 0, "ignore_eos": True}


def tiny(name: str, budget: int = 1 << 21) -> LocalLM:
    engine = Engine(made(name), byte_tokenizer(), context=128, parallel=8, budget=budget)
    return LocalLM("tiny", engine, engine.tokenizer, {})


def asked(house: Running, prompt: list[int], **more: Any) -> httpx.Response:
    body = {"prompt": prompt, "return_token_ids": True, **ASKED, **more}
    return httpx.post(f"{house.url}/v1/completions", json=body, timeout=300, trust_env=False)


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["choices"][0]["text"]
    return found


@contextmanager
def broken(lm: LocalLM, when: str, error: Callable[[], Exception]) -> Iterator[list[int]]:
    """Fail the steps in which BAD takes part, after they have written what they remember."""
    engine = lm.engine
    real, sizes = engine.runners[-1].run, list[int]()

    def run(feed: Any, select: Any) -> torch.Tensor:
        logits = real(feed, select)
        for output in engine._queue.running:
            mine = output.state in feed.states and list(output.job.prompt) == BAD
            if mine and (when == "prefill" or output.generated > 3):
                sizes.append(len(feed.states))
                raise error()
        return logits

    engine.runners[-1].run = run  # type: ignore[method-assign]
    yield sizes
    engine.runners[-1].run = real  # type: ignore[method-assign]


@pytest.mark.parametrize("name", ["llama", "mamba"])
@pytest.mark.parametrize("when", ["prefill", "decode"])
def test_25_a_fault_is_of_one_request_alone(name: str, when: str) -> None:
    lm = tiny(name)
    with running(lambda source: lm, parallel=8) as house:
        alone = [text(asked(house, prompt)) for prompt in PROMPTS]
        lm.engine.call(lm.engine.prefixes.clear)
        with (
            broken(lm, when, lambda: RuntimeError("secret /etc/path")) as sizes,
            ThreadPoolExecutor(8) as pool,
        ):
            good = [pool.submit(asked, house, prompt) for prompt in PROMPTS]
            bad = pool.submit(asked, house, BAD).result()
            assert [text(answer.result()) for answer in good] == alone
        assert bad.status_code == 500
        assert "secret" not in bad.text
        assert sizes
        assert text(asked(house, PROMPTS[0])) == alone[0]
        pool_ = lm.engine.pool
        house.wait(lambda: pool_.free_tokens == pool_.capacity)


def test_25_a_fault_of_nobodys_ends_all_and_the_engine_lives(monkeypatch: Any) -> None:
    lm = tiny("llama")
    monkeypatch.setattr(lm.engine.prefixes, "begin", lambda output: 1 / 0)
    with running(lambda source: lm) as house:
        assert asked(house, PROMPTS[0]).status_code == 500
        monkeypatch.undo()
        assert text(asked(house, PROMPTS[0]))


STARVED = [
    MemoryError,
    lambda: torch.OutOfMemoryError("CUDA out of memory"),
    lambda: torch.empty(1 << 55),
]


@pytest.mark.parametrize("error", STARVED)
@pytest.mark.parametrize("when", ["prefill", "decode"])
def test_26_no_memory_for_a_step(error: Callable[[], Any], when: str) -> None:
    """503 to who asked for too much, after it waited for the others to leave; 200 to those."""
    lm = tiny("llama")
    with running(lambda source: lm, parallel=8) as house:
        alone = [text(asked(house, prompt)) for prompt in PROMPTS]
        with broken(lm, when, error), ThreadPoolExecutor(8) as pool:
            good = [pool.submit(asked, house, prompt) for prompt in PROMPTS]
            bad = pool.submit(asked, house, BAD).result()
            assert [text(answer.result()) for answer in good] == alone
        assert (bad.status_code, bad.json()["error"]["code"]) == (503, "overloaded")
        assert "memory" in bad.json()["error"]["message"]
        assert int(bad.headers["retry-after"]) >= 1
        assert text(asked(house, PROMPTS[0])) == alone[0]


def test_26_who_finds_no_memory_beside_others_is_answered_after_them() -> None:
    lm = tiny("llama")
    expected = list(lm.complete(BAD, **ASKED).tokens)
    lm.engine.call(lm.engine.prefixes.clear)
    real, refused = lm.engine.runners[-1].run, list[int]()

    def run(feed: Any, select: Any) -> torch.Tensor:
        here = lm.engine._queue.running
        mine = any(o.state in feed.states and list(o.job.prompt) == BAD for o in here)
        if mine and len(here) > 1:
            refused.append(len(here))
            raise MemoryError
        return real(feed, select)

    lm.engine.runners[-1].run = run  # type: ignore[method-assign]
    others = [lm.complete_stream(p, **ASKED) for p in PROMPTS]
    assert list(lm.complete(BAD, **ASKED).tokens) == expected
    assert [len(s.result().tokens) for s in others] == [10] * len(PROMPTS)
    assert refused
    lm.close()


def test_26_state_used_up_lets_the_youngest_wait() -> None:
    wide, narrow = tiny("llama"), tiny("llama")
    room = narrow.engine.pool.token_bytes * 32 * 5
    narrow.close()
    narrow = tiny("llama", room)
    dropped: list[object] = []
    drop = narrow.engine._queue.drop
    narrow.engine._queue.drop = lambda o, **k: (dropped.append(o), drop(o, **k))[1]  # type: ignore[method-assign]
    with running(lambda source: narrow, parallel=8) as house, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(asked, house, [k, *PROMPTS[2]], max_tokens=60) for k in range(6)]
        for k, answer in enumerate(answers):
            found = wide.complete([k, *PROMPTS[2]], **{**ASKED, "max_tokens": 60})
            assert text(answer.result()) == found.text
    assert len(dropped) > 6
    wide.close()


def poor(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    told = machine.Memory(total=1 << 34, limit=None, available=available)
    monkeypatch.setattr(machine, "memory", lambda *_: told)


def test_26_a_model_that_cannot_fit_is_refused_with_the_estimate(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poor(monkeypatch, 60 << 20)

    def never(*_: Any) -> Any:
        raise AssertionError("something was read")

    monkeypatch.setattr(Packed, "dequantize", never)
    size = round(smollm2.stat().st_size / 1e6)
    with pytest.raises(KeifuError, match=r"about (\d+) MB of weights .* 63 MB are free") as refused:
        keifu.load(str(smollm2))
    said = int(str(refused.value).split("about ")[1].split()[0])
    assert abs(said - size) < 0.05 * size
    with pytest.raises(KeifuError, match=r"about 539 MB of weights"):
        keifu.load(str(smollm2), precision="exact")  # 134.5 million of 4 bytes
    poor(monkeypatch, 1 << 30)
    with pytest.raises(KeifuError, match=r"4\.0 GB of state"):
        keifu.load(str(smollm2), max_memory=4 * 10**9)
    poor(monkeypatch, 60 << 20)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    assert main(["complete", "-m", str(smollm2), "hello"]) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "are free" in shown


def test_26_no_memory_while_the_terminal_waits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = tiny("llama")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr("keifu.cli.model.load", lambda *_, **__: lm)
    monkeypatch.setattr("keifu.cli.model.find", lambda *_, **__: None)

    def run(*_: Any) -> torch.Tensor:
        raise MemoryError

    lm.engine.runners[-1].run = run  # type: ignore[method-assign]
    assert main(["complete", "--max-tokens", "9", "hello"]) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "no memory left" in shown


def reload(house: Running, name: str = "fake") -> httpx.Response:
    url = f"{house.url}/v1/models/{name}/reload"
    return httpx.post(url, timeout=300, trust_env=False)


def streamed(house: Running, begun: threading.Event | None = None, **more: Any) -> str:
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "stream": True, **more}
    found = ""
    with (
        httpx.Client(base_url=house.url, timeout=300, trust_env=False) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    found += choice["delta"].get("content") or ""
            if found and begun:
                begun.set()
    return found


def test_27_running_requests_keep_the_old_weights() -> None:
    replies = iter("abc")

    def make(source: str) -> LM:
        return FakeLM(source, reply=next(replies) * 60, delay=0.02)

    with running(make, parallel=4) as house, ThreadPoolExecutor(4) as pool:
        begun = [threading.Event() for _ in range(2)]
        first = [pool.submit(streamed, house, event) for event in begun]
        assert all(event.wait(10) for event in begun)
        assert reload(house).status_code == 200
        old, new = house.loaded["fake"]
        assert not old.closed
        assert not any(stream.done() for stream in first)
        later = [streamed(house, max_tokens=5) for _ in range(2)]
        assert [stream.result() for stream in first] == ["a" * 60] * 2
        assert later == ["b" * 5] * 2
        house.wait(lambda: old.closed)
        assert not new.closed
        assert house.http.get("/v1/models").json()["data"][0]["meta"]["state"] == "ready"
        house.still_good()
        assert reload(house).status_code == 200
        house.wait(lambda: new.closed)
        assert streamed(house, max_tokens=3) == "ccc"


def test_27_two_at_once_read_the_files_once_and_the_end_closes_all() -> None:
    go = threading.Event()

    def make(source: str) -> FakeLM:
        if len(count) > 0:
            go.wait(10)
        count.append(source)
        return FakeLM(source, reply="x" * 4000, delay=0.01)

    count: list[str] = []
    with ThreadPoolExecutor(3) as pool, running(make) as house:
        answers = [pool.submit(reload, house) for _ in range(2)]
        begun = threading.Event()
        pool.submit(streamed, house, begun)
        assert begun.wait(10)
        house.wait(lambda: house.gate.admitted == 3)
        go.set()
        assert [answer.result().status_code for answer in answers] == [200, 200]
        assert len(count) == 2
        house.server.should_exit = True
    assert all(lm.closed for lm in house.loaded["fake"])


def test_27_a_model_that_is_no_good_or_does_not_fit_leaves_the_old_one(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The estimate is made beside what runs, so that both are promised before anything is read."""
    lm = keifu.load(str(smollm2), ctx=128, parallel=2)
    sources = iter([lm])

    def make(source: str) -> LM:
        return next(sources, None) or keifu.load(str(smollm2), ctx=128, parallel=2)

    with running(make) as house:
        before = text(asked(house, [5, 9], max_tokens=4))
        with monkeypatch.context() as less:
            poor(less, 60 << 20)
            answer = reload(house)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_load_failed")
        assert str(smollm2) not in answer.text
        assert "are free" in caplog.text
        assert text(asked(house, [5, 9], max_tokens=4)) == before
        assert reload(house).status_code == 200
        assert text(asked(house, [5, 9], max_tokens=4)) == before
        assert reload(house, "other").status_code == 404
        assert reload(house).status_code == 200


def test_27_a_model_that_was_not_loaded_is_loaded_once() -> None:
    with running(FakeLM, sources=["fake", "other"]) as house:
        assert "other" not in house.loaded
        assert reload(house, "other").status_code == 200
        assert len(house.loaded["other"]) == 1
        foreign = {"origin": "http://elsewhere.example"}
        url = f"{house.url}/v1/models/fake/reload"
        assert httpx.post(url, headers=foreign, trust_env=False).status_code == 403
        assert len(house.loaded["fake"]) == 1
