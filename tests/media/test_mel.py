"""Log-mel frames against Whisper's own feature extractor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from keifu.core.errors import ConfigError, KeifuError
from keifu.media.mel import MelSpectrogram
from keifu.media.wav import Sound

RATE = 16000


def sounds() -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    time = torch.arange(RATE * 2) / RATE
    noise = torch.randn(RATE, generator=made) * 0.1
    return {
        "tones": 0.5 * torch.sin(2 * torch.pi * 440 * time) + 0.1 * torch.sin(9000 * time),
        "noise": noise,
        "quiet": noise[:4321] * 1e-4,
        "silence": torch.zeros(3000),
        "short": noise[:320],
    }


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("name", sounds())
def test_frames_equal_whispers(name: str, bins: int) -> None:
    samples = sounds()[name]
    theirs = WhisperFeatureExtractor(feature_size=bins)
    mel = MelSpectrogram(bins=bins)
    got = mel(Sound(samples=samples, rate=RATE))
    assert got.shape == (mel.frames(samples.shape[0]), bins)
    filled = torch.nn.functional.pad(samples, (0, 30 * RATE - samples.shape[0]))
    for given, padding in ((samples, "longest"), (filled, "max_length")):
        found = theirs(
            samples.numpy(), sampling_rate=RATE, padding=padding, return_tensors="pt"
        ).input_features[0]
        ours = mel(Sound(samples=given, rate=RATE))
        torch.testing.assert_close(ours, found.T, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_filters_equal_the_librarys(scale: str) -> None:
    mel = MelSpectrogram(rate=8000, bins=20, window=256, low=60.0, high=3800.0, scale=scale)
    theirs = mel_filter_bank(129, 20, 60.0, 3800.0, 8000, norm="slaney", mel_scale=scale)
    np.testing.assert_allclose(mel.filters().numpy(), theirs.T, atol=1e-7)


def test_a_tone_is_loudest_in_its_band() -> None:
    mel = MelSpectrogram(bins=40)
    time = torch.arange(RATE) / RATE
    for hertz in (300.0, 1000.0, 4000.0):
        frames = mel(Sound(samples=torch.sin(2 * torch.pi * hertz * time), rate=RATE))
        band = int(frames.mean(0).argmax())
        near = mel.filters()[band].argmax() * RATE / mel.window
        assert abs(float(near) - hertz) < 120


def test_what_cannot_be_heard_is_refused() -> None:
    mel = MelSpectrogram()
    with pytest.raises(KeifuError, match=r"767999 Hz.*the model's 16000.*ffmpeg"):
        mel(Sound(samples=torch.zeros(8000), rate=767_999))
    with pytest.raises(KeifuError, match="159 samples"):
        mel(Sound(samples=torch.zeros(159), rate=RATE))
    with pytest.raises(ConfigError, match="bark"):
        MelSpectrogram(scale="bark")
    with pytest.raises(ConfigError, match="do not fit in 8000 Hz"):
        MelSpectrogram(rate=8000, high=5000.0)
    with pytest.raises(ConfigError, match="above 0"):
        MelSpectrogram(hop=0)
