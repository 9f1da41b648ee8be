"""Log-mel frames: what a speech model reads of a sound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from keifu.core.errors import ConfigError, KeifuError
from keifu.media.resample import resampled
from keifu.media.wav import Sound

SCALES = ("slaney", "htk")


def to_mel(hertz: np.ndarray, scale: str) -> np.ndarray:
    """Hertz -> mel: Slaney's scale (linear to 1 kHz, then logarithmic) or HTK's (O'Shaughnessy)."""
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hertz / 700.0)
    above = 15.0 + np.log(np.maximum(hertz, 1000.0) / 1000.0) * 27.0 / math.log(6.4)
    return np.where(hertz >= 1000.0, above, hertz * 3.0 / 200.0)


def to_hertz(mel: np.ndarray, scale: str) -> np.ndarray:
    """Mel -> hertz."""
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    above = 1000.0 * np.exp((np.maximum(mel, 15.0) - 15.0) * math.log(6.4) / 27.0)
    return np.where(mel >= 15.0, above, mel * 200.0 / 3.0)


@dataclass(frozen=True, kw_only=True)
class MelSpectrogram:
    """Energies in triangular bands, equally spaced in mel, of windows of a sound, in log10.

    The defaults are Whisper's (Radford et al. 2022, section 2.2, and the released code): Hann
    windows centred on every `hop` samples, triangles of equal area, energies below a hundred
    millionth of the loudest raised to it, then (x + 4) / 4.
    """

    rate: int = 16_000
    """Samples a second that it hears."""
    bins: int = 80
    """Bands."""
    window: int = 400
    """Samples that a frame is computed from."""
    hop: int = 160
    """Samples from one frame to the next."""
    low: float = 0.0
    """Hertz where the lowest band begins."""
    high: float | None = None
    """Hertz where the highest band ends; None: half the rate."""
    scale: str = "slaney"
    """Mel scale: slaney or htk."""

    def __post_init__(self) -> None:
        top = self.rate / 2 if self.high is None else self.high
        if self.scale not in SCALES:
            raise ConfigError(f"mel scale {self.scale!r} is not known: {', '.join(SCALES)}")
        if min(self.rate, self.bins, self.window, self.hop) < 1 or self.window < 2:
            raise ConfigError(
                "a spectrogram's rate, bins, window and hop are whole numbers above 0"
            )
        if not 0 <= self.low < top <= self.rate / 2:
            raise ConfigError(f"bands from {self.low} to {top} Hz do not fit in {self.rate} Hz")

    def filters(self) -> Tensor:
        """(bins, window // 2 + 1) weights of each frequency in each band, float32."""
        top = self.rate / 2 if self.high is None else self.high
        ends = to_mel(np.array([self.low, top], np.float64), self.scale)
        corners = to_hertz(np.linspace(ends[0], ends[1], self.bins + 2), self.scale)
        frequencies = np.arange(self.window // 2 + 1) * (self.rate / self.window)
        rise = (frequencies - corners[:-2, None]) / np.diff(corners)[:-1, None]
        fall = (corners[2:, None] - frequencies) / np.diff(corners)[1:, None]
        triangles = np.maximum(0.0, np.minimum(rise, fall))
        area = 2.0 / (corners[2:] - corners[:-2])
        return torch.from_numpy((triangles * area[:, None]).astype(np.float32))

    def frames(self, samples: int) -> int:
        """How many frames a sound of so many samples makes."""
        return samples // self.hop

    def __call__(self, sound: Sound) -> Tensor:
        """The frames of a sound, of any rate: (frames, bins) float32.

        Raises:
            KeifuError: the sound is shorter than one frame, or its rate cannot be converted.
        """
        sound = resampled(sound, self.rate)
        count, half = sound.samples.shape[0], self.window // 2
        if self.frames(count) < 1:
            raise KeifuError(f"the sound has {count} samples; a frame needs {self.hop}")
        x = F.pad(sound.samples, (0, max(0, half + 1 - count)))  # a reflection needs that many
        spectrum = torch.stft(
            x, self.window, self.hop, window=torch.hann_window(self.window), return_complex=True
        )
        power = spectrum[:, : self.frames(count)].abs().square()
        log = (self.filters() @ power).clamp(min=1e-10).log10()
        return ((torch.maximum(log, log.max() - 8.0) + 4.0) / 4.0).T.contiguous()
