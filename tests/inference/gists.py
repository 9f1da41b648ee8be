"""What the tests of gist caches share: tiny models with gist masks, engines, uncached answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.families import families
from keifu.families.qwen import Qwen
from keifu.inference.engine import Engine
from keifu.inference.kept import Kept
from keifu.inference.request import Sampling
from keifu.inference.rules import Rules
from keifu.inference.runner import Feed, TorchRunner
from keifu.nn.gist import gisted, landmarks_of
from keifu.nn.masks import Gist
from keifu.nn.pair import PairModule
from keifu.nn.stack import Stack, StackModule
from tests.families.pair_parity import numbers
from tests.families.parity import DECODERS

GIST, VOCAB = 95, 96
PROMPT = [5, 17, 3, 80, 41, 22, 9, 64, 31, 2, 77, 50, 13]
REST = [8, 90, 26, 33]
CLOSE: dict[str, float] = {"atol": 1e-5, "rtol": 1e-5}
LOGPROBS = Sampling(max_tokens=6, temperature=0, logprobs=1)


def with_gist(prompt: list[int], k: int) -> list[int]:
    return [*prompt, *[GIST] * k]


def refused(name: str) -> bool:
    """Families of which some mixer has no mask."""
    try:
        gisted(families[name].tiny().spec())
    except KeifuError:
        return True
    return False


ABLE = [name for name in DECODERS if not refused(name)]


def model_of(name: str, mask: Gist = Gist()) -> StackModule:
    """A family's tiny model with the mask."""
    family = families[name].tiny()
    if isinstance(family, Qwen):  # its rotary base follows the length, which a cache does not know
        family = replace(family, trained=64)
    spec = family.spec()
    assert isinstance(spec, Stack)
    made = gisted(spec, mask).build()
    assert isinstance(made, StackModule)
    made.initialise(seed=3, std=0.3)
    return made.eval()


@contextmanager
def running(model: StackModule | PairModule, **more: Any) -> Iterator[Engine]:
    if isinstance(model, PairModule):
        more = {"rules": Rules(start=(0,)), "source_vocab": VOCAB} | more
    engine = Engine(
        model, numbers(VOCAB), **{"context": 64, "budget": 1 << 22, "gist": GIST, **more}
    )
    try:
        yield engine
    finally:
        engine.close()


@torch.no_grad()
def masked(model: StackModule, ids: list[int], new: int) -> tuple[list[int], Tensor]:
    """Greedy tokens of the whole prompt under the mask, uncached, and all their logits."""
    row, rows, marks = list(ids), [], landmarks_of(ids, GIST)
    for _ in range(new):
        logits = model(torch.tensor([row]), landmarks=[marks]).logits
        assert logits is not None
        rows.append(logits[0, -1])
        row.append(int(logits[0, -1].argmax()))
    return row[len(ids) :], torch.stack(rows)


@torch.no_grad()
def cached(engine: Engine, kept: Kept, tokens: list[int], runner: Any = None) -> Tensor:
    """Logits of tokens that go on from a kept past, one step for all."""
    assert kept.state is not None
    state = engine.pool.fork(kept.state)
    engine.pool.reserve(state, len(tokens))
    feed = Feed(
        ids=tokens,
        states=[state],
        lengths=[len(tokens)],
        limits=[kept.length + len(tokens)],
        landmarks=(kept.landmarks,),
    )
    runner = runner or TorchRunner(engine.model, engine.pool)
    logits: Tensor = runner.run(feed, range(len(tokens))).clone()

    engine.pool.free(state)
    return logits
