"""Rows 20 and 60 of the fault table, with what was read before: it tells and holds nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import keifu
from keifu.lm.local import LocalLM
from tests.server.harness import Running, running

TEXT = "The lighthouse keeper wrote down every ship that passed in the night. " * 3


@pytest.fixture(scope="module")
def lm(smollm2: Path) -> Iterator[LocalLM]:
    made = keifu.load(str(smollm2), ctx=256, parallel=2)
    assert isinstance(made, LocalLM)
    yield made
    made.close()


@pytest.fixture(scope="module")
def house(lm: LocalLM) -> Iterator[Running]:
    with running(lambda source: lm) as started:
        yield started


def asked(house: Running, **more: Any) -> dict[str, Any]:
    body = {"prompt": TEXT, "max_tokens": 3, "temperature": 0, **more}
    answer = httpx.post(f"{house.url}/v1/completions", json=body, timeout=60, trust_env=False)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def test_60_what_one_client_sent_is_not_found_by_another(
    house: Running, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither counted nor used across salts; the same answers; no prompt in any log."""
    caplog.set_level(logging.DEBUG)
    found = [asked(house, cache_salt=salt) for salt in ("a", "b", "a", "c")]
    cached = [f["usage"]["prompt_tokens_details"]["cached_tokens"] for f in found]
    whole = found[0]["usage"]["prompt_tokens"]
    assert cached == [0, 0, whole - 1, 0]
    assert len({f["choices"][0]["text"] for f in found}) == 1
    assert "lighthouse" not in caplog.text
    wrong = {"prompt": "x", "cache_salt": "y" * 300}
    answer = httpx.post(f"{house.url}/v1/completions", json=wrong, timeout=60, trust_env=False)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "cache_salt")


def test_20_a_client_that_leaves_after_a_hit_holds_nothing(house: Running, lm: LocalLM) -> None:
    asked(house, cache_salt="left")
    body = {"prompt": TEXT, "max_tokens": 150, "stream": True, "cache_salt": "left"}
    url, counted = f"{house.url}/v1/completions", "keifu_requests_cancelled_total"
    before = house.metric(counted)
    with (
        httpx.Client(trust_env=False) as client,
        client.stream("POST", url, json=body, timeout=60) as answer,
    ):
        next(answer.iter_raw())
    house.wait(lambda: house.metric(counted) == before + 1)
    pool = lm.engine.pool
    house.wait(lambda: pool.free_tokens == pool.capacity)
    assert house.metric("vllm:kv_cache_usage_perc") == 0
    assert asked(house)["choices"][0]["text"]
