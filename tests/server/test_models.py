"""Several models: names, background and lazy loading, idle unload, failures."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from keifu.core.errors import KeifuError
from keifu.server.models import Models, offers, quiet_heap
from tests.server.harness import FakeLM, running


def test_health_is_503_while_the_model_loads() -> None:
    go = threading.Event()

    def make(source: str) -> FakeLM:
        go.wait(10)
        return FakeLM(source)

    with running(make, ready=False) as house:
        answer = house.http.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "loading")
        assert house.http.get("/ping").status_code == 200
        early = house.chat()
        assert early.status_code == 503
        assert early.headers["retry-after"] == "1"
        assert early.json()["error"]["code"] == "model_loading"
        assert house.http.get("/v1/models").json()["data"][0]["meta"]["state"] == "loading"
        go.set()
        house.wait(lambda: house.http.get("/health").status_code == 200)
        house.still_good()


def test_models_are_listed_and_found() -> None:
    with running(sources=["fake", "hub/other"], aliases=["mine"]) as house:
        cards = house.http.get("/v1/models").json()
        assert cards["object"] == "list"
        assert [c["id"] for c in cards["data"]] == ["mine", "hub/other"]
        assert cards["data"][0]["max_model_len"] == 4096
        assert cards["data"][1]["max_model_len"] is None
        assert house.http.get("/v1/models/hub/other").json()["id"] == "hub/other"
        assert house.http.get("/v1/models/none").status_code == 404
        assert house.chat(model="mine").json()["model"] == "mine"
        assert house.http.get("/version").json()["version"]


def test_a_second_model_loads_when_first_wanted_and_only_once() -> None:
    with running(sources=["fake", "other"]) as house:
        assert list(house.loaded) == ["fake"]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: house.chat(model="other", max_tokens=2), range(4)))
        assert [a.status_code for a in answers] == [200] * 4
        assert len(house.loaded["other"]) == 1


def test_idle_models_are_freed_and_come_back_but_not_while_used() -> None:
    def make(source: str) -> FakeLM:
        return FakeLM(source, reply="x" * 30, delay=0.04)

    with running(make, idle=0.8) as house:
        first = house.lm()
        assert house.chat().status_code == 200  # 1.2 s, longer than the idle time
        assert not first.closed
        house.wait(lambda: first.closed)
        assert house.http.get("/v1/models").json()["data"][0]["meta"]["state"] == "unloaded"
        assert house.http.get("/health").status_code == 200
        house.still_good()
        assert len(house.loaded["fake"]) == 2


def test_what_stays_is_not_collected_again_and_what_goes_is() -> None:
    """A model in a cycle with itself is freed when it is idle, though it was set aside before."""
    seen: list[weakref.ref[FakeLM]] = []

    def make(source: str) -> FakeLM:
        lm = FakeLM(source)
        lm.cycle = lm  # type: ignore[attr-defined]
        seen.append(weakref.ref(lm))
        return lm

    async def life() -> None:
        models = Models(offers(["fake"]), make, 0.05, quiet_heap)
        await models.start()
        assert seen[0]() is not None
        assert gc.get_freeze_count() > 10_000
        for _ in range(100):
            await asyncio.sleep(0.02)
            if seen[0]() is None:
                break
        else:
            pytest.fail("an idle model was not freed")
        async with models.lend("fake") as lm:
            assert lm is seen[1]()
        await models.close()

    gc.disable()
    try:
        asyncio.run(life())
    finally:
        gc.enable()
        gc.unfreeze()


def test_a_model_that_cannot_be_loaded() -> None:
    def make(source: str) -> FakeLM:
        if source == "broken":
            raise KeifuError("/secret/path/model.gguf is damaged")
        return FakeLM(source)

    with running(make, sources=["fake", "broken"]) as house:
        answer = house.chat(model="broken")
        assert answer.status_code == 503
        assert answer.headers["x-should-retry"] == "false"
        assert "secret" not in answer.text
        house.still_good()
    with running(make, sources=["broken"], ready=False) as house:
        house.wait(lambda: house.http.get("/health").json()["status"] == "failed")
        assert house.chat(model="broken").json()["error"]["code"] == "model_load_failed"


def test_offers(tmp_path: Path) -> None:
    file = tmp_path / "weights.gguf"
    file.touch()
    assert [o.id for o in offers([str(file), "a/b"], [])] == ["weights.gguf", "a/b"]
    assert [o.id for o in offers(["a", "b"], ["x"])] == ["x", "b"]
    with pytest.raises(KeifuError, match="alias"):
        offers(["a"], ["x", "y"])
    with pytest.raises(KeifuError, match="different names"):
        offers(["a", "a"])
