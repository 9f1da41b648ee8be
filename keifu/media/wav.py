"""WAV files: read with every size checked before it is believed, written as 16-bit PCM."""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from keifu.core.atomic import written
from keifu.core.errors import FormatError, KeifuError

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
BITS = {PCM: (8, 16, 24, 32), FLOAT: (32, 64)}
RATES = (1_000, 768_000)
CHANNELS = 64
CHUNKS = 1_000
"""A file with more chunks is no recording."""
UNKNOWN = 0xFFFFFFFF
"""The data size of a file that was written to a pipe: the rest of the file."""
PIECE = 1 << 18
"""Moments decoded at once: memory is the result and one piece."""
LONGEST = 3600.0
"""Seconds of sound that are read at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sound:
    """A recording in one channel."""

    samples: Tensor
    """(samples,) float32 from -1 to 1."""
    rate: int
    """Samples a second."""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.samples.shape[0] / self.rate


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """The `fmt ` chunk."""

    tag: int
    channels: int
    rate: int
    block: int
    bits: int


def read_wav(path: str | Path, *, longest: float = LONGEST) -> Sound:
    """A WAV file as one channel, the mean of its own: 8-, 16-, 24-, 32-bit PCM, 32-, 64-bit float.

    Args:
        longest: seconds of sound beyond which the file is refused before it is read.

    Raises:
        KeifuError: the file cannot be opened, or holds more than `longest` seconds.
        FormatError: it is no WAV file of these kinds, contradicts itself or was cut off.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _read(file, path.name, os.fstat(file.fileno()).st_size, longest)
    except OSError as error:
        raise KeifuError(f"cannot read {path}: {error.strerror}") from None


def _read(file: BinaryIO, name: str, size: int, longest: float) -> Sound:
    head = file.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise FormatError(f"{name} is not a WAV file: convert it (ffmpeg -i {name} out.wav)")
    layout: _Layout | None = None
    for _ in range(CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            break
        kind, length = head[:4], int.from_bytes(head[4:], "little")
        left = size - file.tell()
        if kind == b"data":
            if layout is None:
                raise FormatError(f"{name}: the sound comes before its description")
            length = left if length == UNKNOWN else length
            return _sound(file, name, layout, length, left, longest)
        if length > left:
            raise FormatError(f"{name}: a chunk of {length} bytes in the last {left} of the file")
        if kind == b"fmt ":
            layout = _layout(file.read(min(length, 40)), name)
            length -= min(length, 40)
        file.seek(length + (length & 1), os.SEEK_CUR)
    raise FormatError(f"{name}: there is no sound in it (no data chunk)")


def _layout(chunk: bytes, name: str) -> _Layout:
    if len(chunk) < 16:
        raise FormatError(f"{name}: its description has {len(chunk)} bytes, not 16 or more")
    tag, channels, rate, _, block, bits = struct.unpack("<HHIIHH", chunk[:16])
    if tag == EXTENSIBLE:
        if len(chunk) < 40:
            raise FormatError(f"{name}: its extended description has {len(chunk)} bytes, not 40")
        tag = int.from_bytes(chunk[24:26], "little")
    if tag not in BITS or bits not in BITS[tag]:
        raise FormatError(
            f"{name}: encoding {tag} with {bits} bits is not read; PCM of 8, 16, 24 or 32 bits and "
            f"float of 32 or 64 are: convert it (ffmpeg -i {name} -c:a pcm_s16le out.wav)"
        )
    if not 1 <= channels <= CHANNELS or not RATES[0] <= rate <= RATES[1]:
        raise FormatError(f"{name}: {channels} channels at {rate} Hz is not a recording")
    if block != channels * bits // 8:
        raise FormatError(f"{name}: {channels} channels of {bits} bits are not {block} bytes")
    return _Layout(tag=tag, channels=channels, rate=rate, block=block, bits=bits)


def _sound(
    file: BinaryIO, name: str, layout: _Layout, length: int, left: int, longest: float
) -> Sound:
    if length > left:
        raise FormatError(f"{name} was cut off: it promises {length} bytes of sound and has {left}")
    count = length // layout.block
    if count > longest * layout.rate:
        seconds = count / layout.rate
        raise KeifuError(f"{name} lasts {seconds:g} s, more than {longest:g}: cut it in pieces")
    samples = np.empty(count, np.float32)
    for start in range(0, count, PIECE):
        raw = file.read(min(PIECE, count - start) * layout.block)
        values = _samples(raw, layout).reshape(-1, layout.channels).mean(1)
        if not np.isfinite(values).all():
            raise FormatError(f"{name}: the sound has values that are not numbers")
        samples[start : start + PIECE] = values
    return Sound(samples=torch.from_numpy(samples), rate=layout.rate)


def _samples(raw: bytes, layout: _Layout) -> np.ndarray:
    """All samples in order, full scale 1."""
    if layout.tag == FLOAT:
        return np.frombuffer(raw, f"<f{layout.bits // 8}").astype(np.float64)
    if layout.bits == 8:
        return (np.frombuffer(raw, np.uint8).astype(np.float64) - 128) / 128
    if layout.bits == 24:
        bytes_ = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        wide = np.zeros((bytes_.shape[0], 4), np.uint8)
        wide[:, 1:] = bytes_
        return wide.reshape(-1).view("<i4").astype(np.float64) / 2**31
    whole = np.frombuffer(raw, f"<i{layout.bits // 8}").astype(np.float64)
    return whole / 2.0 ** (layout.bits - 1)


def write_wav(path: str | Path, sound: Sound) -> None:
    """Write 16-bit PCM; samples beyond full scale are clipped. The file is whole or not there."""
    if not math.isfinite(float(sound.samples.abs().sum())):
        raise KeifuError("the sound has values that are not numbers")
    whole = (sound.samples.double() * 32768).round().clamp(-32768, 32767)
    data = whole.numpy().astype("<i2").tobytes()
    layout = struct.pack("<HHIIHH", PCM, 1, sound.rate, sound.rate * 2, 2, 16)
    head = b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVE"
    body = b"fmt " + struct.pack("<I", 16) + layout + b"data" + struct.pack("<I", len(data))
    with written(path) as file:
        file.write(head + body + data)
