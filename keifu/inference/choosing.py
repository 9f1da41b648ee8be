"""Who comes next: one token for each row of logits, by each output's own settings and draws.

A drawn token is the winner of a race (the Gumbel trick in its exponential form): token i ends at
E_i / p_i, where E_i, exponentially distributed, is a hash of the output's seed, the place in it and
i. So draws are the same whatever else runs, and whoever guesses ahead can make them too. All rows
of a step go through the native kernels at once; what they do not know is done here, row by row.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from ctypes import Array, addressof, c_void_p
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.inference.request import COLD, Sampling
from keifu.inference.sampling import filtered
from keifu.nn.kernels import native

WHOLE = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15

Words = np.ndarray[Any, np.dtype[np.uint32]]


class Chooser:
    """How one output's tokens are chosen: settings of a request, and draws of its own.

    Args:
        index: which of the request's outputs it is.
    """

    def __init__(self, sampling: Sampling, index: int = 0) -> None:
        self.sampling = sampling
        seed = random.getrandbits(64) if sampling.seed is None else sampling.seed + index
        self.seed = seed & WHOLE
        self.greedy = sampling.temperature < COLD or sampling.top_k == 1
        self.filters = sampling.typical_p < 1.0 and not self.greedy
        """Whether it keeps tokens in a way that the kernels do not know."""
        self.ask = native.Choice(seed=self.seed, temperature=1.0, top_p=1.0)
        if self.greedy:
            self.ask.temperature = 0.0
        elif not self.filters:
            self.ask.temperature, self.ask.top_k = sampling.temperature, sampling.top_k
            self.ask.top_p, self.ask.min_p = sampling.top_p, sampling.min_p
        self.at = addressof(self.ask)

    def plain(self, scores: Tensor, place: int, ids: Tensor | None = None) -> int:
        """The choice among scores (n,) of `ids` (n,), or why there is none, without the kernels."""
        top = float(scores.max())
        if top != top:
            return -2
        if top == -np.inf:
            return -1
        if self.greedy or top == np.inf:
            at = int(scores.argmax())
        else:
            at = race(filtered(scores, self.sampling), self.seed, place, ids)
        return at if ids is None else int(ids[at])


def choose(
    asks: Sequence[tuple[Chooser, int, int]],
    logits: Tensor,
    instead: Mapping[int, Tensor] | None = None,
    among: Tensor | None = None,
) -> list[int]:
    """The next token of every output that asks; below 0 where there is none (see `chosen`).

    Args:
        asks: who chooses, how many tokens it has chosen before, and by which row.
        logits: (rows, n) float32, on the CPU.
        instead: scores (n,) that count instead of a row, by its number.
        among: (n,) whose the scores are; None: all tokens'.
    """
    edited, ids = dict(instead or {}), None if among is None else among.int()
    if not native.available():
        return [c.plain(edited.get(row, logits[row]), place, ids) for c, place, row in asks]
    for chooser, _, row in asks:
        if chooser.filters:
            edited[row] = filtered(edited.get(row, logits[row]), chooser.sampling)
    given = posed(asks, logits, edited, ids)
    if native.library().kf_draw(given, len(asks)):  # no threads to be had: one by one
        for at in given:
            native.library().kf_draw((c_void_p * 1)(at), 1)
    return [chooser.ask.token for chooser, _, _ in asks]


def posed(
    asks: Sequence[tuple[Chooser, int, int]],
    logits: Tensor,
    instead: Mapping[int, Tensor] = MappingProxyType({}),
    ids: Tensor | None = None,
) -> Array[c_void_p]:
    """The same questions as the kernels read them, where they lie; `ids` are int32."""
    start, step, count = logits.data_ptr(), 4 * logits.stride(0), logits.shape[1]
    for chooser, place, row in asks:
        ask, scores = chooser.ask, instead.get(row)
        ask.logits = start + row * step if scores is None else scores.data_ptr()
        ask.count, ask.place, ask.ids = count, place, None if ids is None else ids.data_ptr()
    return (c_void_p * len(asks))(*[chooser.at for chooser, _, _ in asks])


def chosen(token: int) -> int:
    """The token, or an error that says why there is none."""
    if token == -1:
        raise KeifuError("no token may follow: the rules and settings forbid all of them")
    if token < 0:
        raise KeifuError("the model's logits are not numbers: its weights may be damaged")
    return token


def race(scores: Tensor, seed: int, place: int, ids: Tensor | None = None) -> int:
    """Which of scores (n,) of `ids` (n,) ends first: drawn by their softmax, as kernels do it."""
    key = _mixed((seed + GOLDEN * (place + 1)) & WHOLE)
    h: Words = np.arange(len(scores), dtype=np.uint32)
    if ids is not None:
        h = ids.numpy().astype(np.uint32)
    h = h * np.uint32(0x9E3779B1) ^ np.uint32(key & 0xFFFFFFFF)
    h = _scrambled(_scrambled(h) + np.uint32(key >> 32))
    x = scores.double().numpy()
    with np.errstate(divide="ignore"):
        ends = -np.log1p(-(h + 0.5) * 2.0**-32) / np.exp(x - x.max())
    return int(ends.argmin())


def _mixed(x: int) -> int:
    """64 bits in which every bit of the input counts (Steele et al. 2014, SplitMix)."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & WHOLE
    x = (x ^ x >> 27) * 0x94D049BB133111EB & WHOLE
    return x ^ x >> 31


def _scrambled(h: Words) -> Words:
    h = (h ^ h >> np.uint32(16)) * np.uint32(0x7FEB352D)
    h = (h ^ h >> np.uint32(15)) * np.uint32(0x846CA68B)
    return h ^ h >> np.uint32(16)


def single(chooser: Chooser, place: int, scores: Tensor, among: Tensor | None = None) -> int:
    """The next token by one row of scores (vocab,); one of `among` (ids), where given."""
    if among is None:
        return chosen(choose([(chooser, place, 0)], scores[None])[0])
    if len(among) == 1:
        return int(among[0])
    return chosen(choose([(chooser, place, 0)], scores[among][None], among=among)[0])
