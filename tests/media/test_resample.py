"""Resampling against scipy's polyphase filter, on tones, and end to end."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import signal

from keifu.core.errors import KeifuError
from keifu.media.mel import MelSpectrogram
from keifu.media.resample import BETA, CROSSINGS, resampled
from keifu.media.wav import Sound

RATES = [8000, 11025, 12000, 15999, 16001, 22050, 24000, 32000, 44100, 48000, 96000, 192000]


def tone(hertz: float, rate: int, seconds: float = 0.5) -> Sound:
    time = torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    return Sound(samples=torch.sin(2 * math.pi * hertz * time).float(), rate=rate)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("samples", [0, 1, 7, 500, 4001])
def test_equals_scipys_polyphase_filter(rate: int, samples: int) -> None:
    x = torch.randn(samples, generator=torch.manual_seed(rate + samples))
    got = resampled(Sound(samples=x, rate=rate), 16000)
    assert (got.rate, got.samples.dtype) == (16000, torch.float32)
    if not samples:
        assert got.samples.shape == (0,)
        return
    common = math.gcd(rate, 16000)
    up, down = 16000 // common, rate // common
    wide = max(up, down)
    taps = signal.firwin(2 * CROSSINGS * wide + 1, 1 / wide, window=("kaiser", BETA))
    wanted = signal.resample_poly(x.double().numpy(), up, down, window=taps)
    assert got.samples.shape == wanted.shape
    torch.testing.assert_close(got.samples.double(), torch.tensor(wanted), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_stays_and_what_cannot_be_held_goes(rate: int) -> None:
    """Within 1e-3 in the middle; a tone above half the new rate is 80 dB down."""
    got = resampled(tone(440, rate), 16000)
    inner = slice(1000, -1000)
    wanted = tone(440, 16000, 0.6).samples[: got.samples.shape[0]]
    assert (got.samples - wanted)[inner].abs().max() < 1e-3
    if rate > 20000:
        assert resampled(tone(10500, rate), 16000).samples[inner].abs().max() < 1e-4


def test_the_same_rate_is_the_same_sound_and_a_wild_ratio_is_refused() -> None:
    sound = tone(440, 16000)
    assert resampled(sound, 16000) is sound
    with pytest.raises(KeifuError, match="767999 Hz, which is no simple ratio"):
        resampled(Sound(samples=torch.zeros(10), rate=767_999), 16000)


@pytest.mark.parametrize("rate", [44100, 48000])
def test_frames_of_a_file_at_another_rate(rate: int) -> None:
    """A chord's frames are those of the chord recorded at the model's own rate."""
    mel = MelSpectrogram(bins=20, low=100.0, high=6000.0)
    chords = [sum(tone(h, r).samples for h in (220, 900, 3100)) for r in (rate, 16000)]
    given, own = (
        mel(Sound(samples=torch.as_tensor(c), rate=r))
        for c, r in zip(chords, (rate, 16000), strict=True)
    )
    assert given.shape == own.shape
    assert (given - own)[2:-2].abs().max() < 0.02
