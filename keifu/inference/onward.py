"""Sources that begin with what an encoder has read before: its gist tokens in place of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.inference.kept import Source
from keifu.inference.runner import step_of
from keifu.inference.sequence import Job
from keifu.nn.masks import Landmarks
from keifu.nn.pair import PairModule
from keifu.nn.past import forget, given, taken
from keifu.nn.state import RequestState, StatePool, state_bytes

PAGE = 32
"""Places of a page of what an encoder holds."""


def read(
    pair: PairModule,
    tokens: Sequence[int],
    landmarks: Landmarks,
    device: torch.device,
    compute: torch.dtype | None,
) -> Source:
    """What the encoder holds of the beginning of a source that ends with gist tokens: them."""
    assert landmarks.gist is not None
    pool = _pool(pair, 2 * len(tokens), device, compute)
    state = pool.open()
    hidden = _run(pair, pool, state, tokens, landmarks, compute)
    forget(pool, state, landmarks.gist[0])
    return Source(past=taken(pool, state), hidden=hidden[landmarks.gist[0] :])


def onward(pair: PairModule, job: Job, device: torch.device, compute: torch.dtype | None) -> Tensor:
    """The memory (length, width) of a source that begins with what was read before."""
    if job.past is None or job.past.source is None:
        raise KeifuError("the past of a waiting request was released: read it again")
    before = job.past.source
    pool = _pool(pair, before.past.tokens + len(job.source), device, compute)
    state = given(pool, before.past)
    hidden = _run(pair, pool, state, job.source, job.landmarks, compute)
    return pair.bridged(torch.cat([before.hidden.to(hidden), hidden]))


def _run(
    pair: PairModule,
    pool: StatePool,
    state: RequestState,
    tokens: Sequence[int],
    landmarks: Landmarks,
    compute: torch.dtype | None,
) -> Tensor:
    """Hidden states (len(tokens), width) of a source's next tokens, which end it."""
    n, ids = len(tokens), torch.tensor(list(tokens), device=pool.device)
    pool.reserve(state, n)
    limits = [state.length + n]
    step = step_of([state], [n], limits, pool.device, compute, landmarks=(landmarks,))
    hidden = pair.encoder.run(ids, step, pool.handles([state], [n])).hidden
    pool.advance(state, n)
    return hidden


def _pool(
    pair: PairModule, tokens: int, device: torch.device, compute: torch.dtype | None
) -> StatePool:
    """Room for one source in an encoder that otherwise keeps nothing."""
    entries, dtype = pair.spec.encoder.entries(), compute or torch.float32
    _, each = state_bytes(entries, dtype)
    room = each * (tokens + 4 * PAGE)
    return StatePool(entries, budget=room, dtype=dtype, device=device, page=PAGE)
