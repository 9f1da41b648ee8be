"""The soak's arithmetic against scipy, its verdict on planted growth, its clients on a server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from torch.nn import functional as F

from benchmarks import soak
from benchmarks.soak_clients import KINDS, Clients
from tests.server.harness import FakeLM, running


@pytest.mark.parametrize("size", [6, 20, 61])
def test_the_slope_and_its_interval_are_scipys(size: int) -> None:
    draw = np.random.default_rng(size)
    xs = np.sort(draw.uniform(0, 15, size))
    ys = 3 * xs + draw.standard_cauchy(size)  # wild values, as of a machine with other work
    low, middle, high = np.sort(soak.slope(xs.tolist(), ys.tolist()))
    theirs = stats.theilslopes(ys, xs, 0.95)
    assert middle == pytest.approx(theirs.slope)
    rises = sorted(
        (ys[j] - ys[i]) / (xs[j] - xs[i]) for i in range(size) for j in range(i + 1, size)
    )
    for mine, other in ((low, theirs.low_slope), (high, theirs.high_slope)):
        places = [int(np.argmin(np.abs(np.array(rises) - value))) for value in (mine, other)]
        assert abs(places[0] - places[1]) <= 1  # a rank is rounded one way or the other


def samples(start: float, growth: float, noise: float = 3e5) -> list[dict[str, float]]:
    """A quarter of an hour of samples: memory that grows so many bytes a minute."""
    draw = np.random.default_rng(0)
    same = dict.fromkeys(soak.SAME, 3.0)
    return [
        {
            "seconds": s,
            "memory": 6e8 + growth * (s - start) / 60 + float(draw.normal()) * noise,
            "children's memory": 5e7,
            **same,
        }
        for s in np.arange(start, start + 900, soak.EVERY).tolist()
    ]


def run(growth: float = 0.0, **after: float) -> dict[str, Any]:
    idle = {"memory": 6e8, "held": 0, **dict.fromkeys(soak.SAME, 3)}
    return {
        "halves": [
            {"samples": samples(0, 5e6), "idle": idle},  # what grows at first may
            {"samples": samples(900, growth), "idle": {**idle, **after}},
        ],
        "cleared": {"capacity": 64, "free": 64, "kept": 0},
        "surprises": [],
    }


def fails(found: dict[str, Any]) -> list[str]:
    return [k for k, row in soak.verdict(found).items() if row.get("holds") is False]


def test_verdicts() -> None:
    assert fails(run()) == []
    assert fails(run(growth=5e5)) == ["growth of memory, kB a minute"]
    row = soak.verdict(run(growth=5e5))["growth of memory, kB a minute"]
    assert row["from"] < row["slope"] < row["to"]
    assert row["slope"] == pytest.approx(500, rel=0.1)
    assert fails(run(held=1)) == ["state"]
    assert fails(run(files=4)) == ["files"]
    assert fails(run(files=2)) == []
    assert fails({**run(), "cleared": {"capacity": 64, "free": 32, "kept": 0}}) == ["state"]
    assert fails({**run(), "surprises": ["chat: 500"]}) == ["unexpected answers"]


def test_a_picture(tmp_path: Path) -> None:
    one = {"seconds": 1.0, **dict.fromkeys(soak.PANELS, 5.0)}
    soak.draw({"samples": [one, {**one, "seconds": 60.0}]}, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


UNKNOWN = {"constrained", "pattern", "scored", "bad"}
"""What the fake model cannot."""


def test_every_kind_of_client_is_answered_as_it_expects() -> None:
    async def ask(url: str) -> Clients:
        clients = Clients(url, 1, seed=3)
        for kind in KINDS.keys() - UNKNOWN:
            for _ in range(6):
                clients._since[asyncio.current_task()] = clients._stalls = 0
                clients._beat = float("inf")  # no stall is noticed here
                await KINDS[kind][1](clients, kind)
        await clients.close_connections()
        return clients

    with running(lambda s: FakeLM(s, context=20_000), aliases=("default",), parallel=2) as house:
        clients = asyncio.run(ask(house.url))
        house.wait(lambda: house.gate.admitted == 0)
    assert clients.surprises == []
    told = {key.rsplit(" ", 1)[0] for key in clients.counts}
    assert told == KINDS.keys() - UNKNOWN
    assert clients.counts["leaves while decoding left"] == 6
    assert clients.counts["hangs up left"] == 6
    assert clients.tokens > 50


def test_what_a_server_should_not_say_is_a_surprise() -> None:
    async def ask(url: str) -> Clients:
        clients = Clients(url, 1, seed=0)
        clients._since[asyncio.current_task()] = 0
        clients._beat = float("inf")
        await clients.post("odd", "/v1/completions", {"prompt": "x", "max_tokens": 2}, (400,))
        await clients.post("fine", "/v1/completions", {"prompt": "x", "max_tokens": 2})
        clients._beat = float("-inf")  # as after a machine that was suspended
        await clients.post("odd", "/v1/completions", {"prompt": "x", "max_tokens": 2}, (400,))
        await clients.close_connections()
        return clients

    with running(lambda s: FakeLM(s)) as house:
        clients = asyncio.run(ask(house.url))
    assert [text[:8] for text in clients.surprises] == ["odd: 200"]
    assert clients.counts["odd, while all stood still"] == 1


def test_texts_of_all_lengths_need_few_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps a kernel for every number of rows: what the soak found to grow."""
    import torch

    from keifu.nn.kernels import products

    seen: set[int] = set()
    linear = F.linear

    def noted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen.add(x.shape[0])
        return linear(x, weight)

    x, weight = torch.randn(600, 24), torch.randn(10, 24)
    whole = x @ weight.T
    monkeypatch.setattr(F, "linear", noted)
    with torch.inference_mode():
        for rows in range(601):
            y = products.dense(x[:rows], weight)
            assert y.shape == (rows, 10)
            torch.testing.assert_close(y, whole[:rows], rtol=1e-5, atol=1e-5)
    assert len(seen) <= 28
    seen.clear()
    products.dense(x[:33], weight)  # what learns is left alone
    assert seen == {33}


@pytest.mark.slow
def test_a_minute_of_the_real_thing(smollm2: Path) -> None:
    found = soak.measure(smollm2, threads=2, minutes=1)
    assert found["state"]["holds"]
    assert found["exit"]["holds"]
    assert found["surprises"] == []
    assert found["work"]["requests"] > 20
