"""Whether decoding costs the same at any length: CPU time and bytes of state a token."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from keifu.inference.runner import Feed, Runner, TorchRunner
from keifu.nn.stack import StackModule
from keifu.nn.state import StatePool

LENGTHS = (4096, 16384, 65536)
"""Tokens in the state when its cost is taken."""
WINDOW = 256
"""Tokens that one mean is over: a whole chunk or window of the models asked."""
WINDOWS = 5
"""Means taken at each length, of which the least counts: others use the machine too."""
STEP = 512
"""Tokens read at once on the way from one length to the next."""


@dataclass(frozen=True)
class Cost:
    """What a token costs at one length."""

    length: int
    seconds: float
    """CPU time."""
    state: int
    """Bytes that the request holds: its slot and its pages."""


@torch.no_grad()
def costs(
    model: StackModule,
    vocab: int,
    budget: int = 1 << 24,
    made_of: Callable[[StackModule, StatePool], Runner] = TorchRunner,
) -> list[Cost]:
    """Costs at each length, on a pool that only a state of fixed size fits into."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = StatePool(model.spec.entries(), budget=budget, slots=1)
    runner, state = made_of(model, pool), pool.open()
    made = torch.Generator().manual_seed(0)

    def read(count: int) -> None:
        ids = torch.randint(0, vocab, (count,), generator=made).tolist()
        pool.reserve(state, count)
        limits = [LENGTHS[-1] * 2]
        runner.run(Feed(ids=ids, states=[state], lengths=[count], limits=limits), [count - 1])
        pool.advance(state, count)

    found = []
    for length in LENGTHS:
        while state.length < length:
            read(min(STEP, length - state.length))
        means = []
        for _ in range(WINDOWS):
            begun = time.process_time()
            for _ in range(WINDOW):
                read(1)
            means.append((time.process_time() - begun) / WINDOW)
        found.append(Cost(length, min(means), pool.held(state)))
    torch.set_num_threads(threads)
    return found
