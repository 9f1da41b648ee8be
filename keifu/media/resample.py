"""A sound at another rate: a windowed sinc, one short filter for each phase of the output."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

from keifu.core.errors import KeifuError
from keifu.media.wav import Sound

CROSSINGS = 16
"""Zeros of the sinc on either side."""
BETA = 8.6
"""Of the Kaiser window: what is beyond the band is 86 dB down (Oppenheim & Schafer, 7.5.3)."""
PHASES = 200_000
"""Largest term of the ratio of two rates, for the filter has 32 coefficients of each."""


def resampled(sound: Sound, rate: int) -> Sound:
    """The same sound at another rate, what that rate cannot hold filtered out.

    y_m = sum over n of x_n h(m / rate - n / sound.rate); beyond its ends the sound is silent.

    Raises:
        KeifuError: the rates have no common ratio of usable size.
    """
    common = math.gcd(rate, sound.rate)
    up, down = rate // common, sound.rate // common
    if up == down:
        return sound
    wide = max(up, down)
    if wide > PHASES:
        raise KeifuError(
            f"the sound has {sound.rate} Hz, which is no simple ratio to the model's {rate}: "
            f"convert it (ffmpeg -i IN.wav -ar {rate} OUT.wav)"
        )
    half = CROSSINGS * wide
    grid = np.sinc(np.arange(-half, half + 1) / wide) * np.kaiser(2 * half + 1, BETA)
    filters = torch.from_numpy(grid * (up / grid.sum())).to(sound.samples.dtype).flip(0)
    edge = half // up + 1
    padded = F.pad(sound.samples, (edge, edge))
    out = sound.samples.new_empty(-(-sound.samples.shape[0] * up // down))
    for phase in range(min(up, out.shape[0])):
        # m = phase, phase + up, ... begin at the input's first, first + down, ...
        first = -((half - phase * down) // up)
        weights = filters[half - phase * down + first * up :: up]
        windows = padded[edge + first :].unfold(0, weights.shape[0], down)
        found = out[phase::up]
        found.copy_(windows[: found.shape[0]] @ weights)
    return Sound(samples=out, rate=rate)
