"""Replicas behind Ray Serve: streams, limits, a killed process, the drain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from keifu.core.errors import KeifuError
from keifu.server.replicas import Fleet, _reason, deployed
from tests.server.fleet import LIMITS, make

BODY = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile goes again
    monkeypatch.setitem(sys.modules, "ray", None)
    two = Fleet(replicas=2, host="127.0.0.1", port=1, make=make, limits=LIMITS, cores=1)
    with pytest.raises(KeifuError, match=r"pip install 'keifu\[serve,ray\]'"), deployed(two):
        pass


def test_a_failure_is_the_line_that_can_be_mended() -> None:
    text = "Deploying failed:\n  Traceback ...\nRuntimeError: \x1eno model at x.gguf\x1e\n more"
    assert _reason(text) == "a replica cannot start: no model at x.gguf"
    assert _reason("Deploying\nfailed") == "a replica cannot start: Deploying failed"


@pytest.fixture
def house() -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """Two replicas in a folder of their own (a short one: its sockets' paths are bounded)."""
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"TMPDIR": folder}
        command = [sys.executable, "-m", "tests.server.fleet"]
        with subprocess.Popen(
            command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                assert process.stdout is not None
                yield process, process.stdout.readline().strip(), Path(folder)
            finally:
                process.kill()


def replicas(url: str) -> dict[str, int]:
    """Each replica's process, by asking until both have answered or a while has passed."""
    found: dict[str, int] = {}
    until = time.monotonic() + 90
    while len(found) < 2 and time.monotonic() < until:
        answer = httpx.get(f"{url}/v1/models", trust_env=False, timeout=20)
        if answer.status_code == 200:
            found[answer.headers["x-replica"]] = int(answer.json()["data"][1]["id"][4:])
        time.sleep(0.05)
    return found


def stream(url: str) -> tuple[str, int]:
    """A whole streamed answer: the last line, and how many came."""
    body = BODY | {"stream": True}
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=30
    ) as answer:
        lines = [line for line in answer.iter_lines() if line]
    return lines[-1], len(lines)


def broken(url: str, processes: dict[str, int]) -> None:
    """A stream whose replica is killed after a few lines."""
    body = BODY | {"stream": True}
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=30
    ) as cut:
        for count, _ in enumerate(cut.iter_lines()):
            if count == 4:
                os.kill(processes[cut.headers["x-replica"]], signal.SIGKILL)


def spoken_for(url: str, codes: list[int]) -> None:
    """Whichever replica answers, /health and /metrics tell of both, each a series of its own."""
    one, done = len(codes) + 1, codes.count(200) + 1  # with the stream before them
    answers, engines = [], set[str]()
    until = time.monotonic() + 30
    while len(engines) < 2 and time.monotonic() < until:
        answers.append(httpx.get(f"{url}/metrics", trust_env=False, timeout=20))
        engines.add(answers[-1].headers["x-replica"])
    assert len(engines) == 2
    for answer in answers:
        found: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                labels = sample.labels
                if {"model_name": "fake", "reason": "queue_full"}.items() & labels.items():
                    name = sample.name + labels.get("finished_reason", "")
                    found.setdefault(name, {})[labels["engine"]] = sample.value
        for prefix in ("vllm:", "keifu_"):
            ended = found[f"{prefix}request_success_totalstop"]
            assert set(ended) == {"0", "1"}
            assert sum(ended.values()) == done
            assert found[f"{prefix}e2e_request_latency_seconds_count"] == ended
        refused = found["keifu_requests_rejected_total"]
        assert sum(refused.values()) == one - done == codes.count(429)
    health = httpx.get(f"{url}/health", trust_env=False, timeout=20).json()
    assert health["status"] == "ok"
    assert health["requests"]["total"] == done
    assert health["requests"]["refused_total"] == codes.count(429)
    assert [each["engine"] for each in health["replicas"]["each"]] == ["0", "1"]
    assert (health["replicas"]["wanted"], health["replicas"]["ready"]) == (2, 2)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_replicas(house: tuple[subprocess.Popen[str], str, Path]) -> None:
    process, url, folder = house
    assert httpx.get(f"{url}/health", trust_env=False).json()["status"] == "ok"
    foreign = httpx.get(f"{url}/health", headers={"host": "a.example"}, trust_env=False)
    assert foreign.status_code == 403
    before = replicas(url)
    assert len(set(before.values())) == 2

    assert stream(url)[0] == "data: [DONE]"
    with ThreadPoolExecutor(12) as pool:  # 6 fit: two running and one waiting in each
        answers = list(
            pool.map(
                lambda _: httpx.post(
                    f"{url}/v1/chat/completions", json=BODY, trust_env=False, timeout=60
                ),
                range(12),
            )
        )
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429}
    spoken_for(url, codes)
    assert len({a.headers["x-replica"] for a in answers}) == 2

    began = time.monotonic()
    with pytest.raises(httpx.RemoteProtocolError):
        broken(url, before)
    assert time.monotonic() - began < 15
    after = replicas(url)
    assert httpx.get(f"{url}/health", trust_env=False).json()["replicas"]["ready"] == 2
    assert len(after) == 2
    assert len(set(after.values()) & set(before.values())) == 1

    children = psutil.Process(process.pid).children(recursive=True)
    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(stream, url)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert last.result()[0] == "data: [DONE]"
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "stopped" in said
    assert "Traceback" not in said
    assert not psutil.wait_procs(children, timeout=20)[1]
    assert list(folder.iterdir()) == []
