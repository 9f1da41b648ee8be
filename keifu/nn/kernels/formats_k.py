"""Packed formats of 256 values with scaled sub-blocks: q2_k ... q6_k and iq4_xs (decoders).

Each takes blocks (n, bytes) uint8 and returns (n, 256) float32. Layouts and the order of
operations follow ggml's reference code, so results are the same to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keifu.nn.kernels.formats_32 import IQ4_VALUES, fields, half, lookup, nibbles


def decode_q2_k(raw: Tensor) -> Tensor:
    """16 bytes of (scale, min) nibbles, 64 bytes of 2-bit codes, d, dmin; sub-blocks of 16."""
    n = len(raw)
    scale = half(raw, 80) * (raw[:, :16] & 15).float()
    low = half(raw, 82) * (raw[:, :16] >> 4).float()
    q = fields(raw[:, 16:80].view(n, 2, 32), 2).view(n, 16, 16).float()
    return q.mul_(scale[:, :, None]).sub_(low[:, :, None]).view(n, 256)


def decode_q3_k(raw: Tensor) -> Tensor:
    """32 bytes of third bits, 64 of 2-bit codes, 12 of 6-bit scales, d; sub-blocks of 16."""
    n = len(raw)
    low = nibbles(raw[:, None, 96:104]).view(n, 16)
    high = fields(raw[:, None, 104:108], 2).view(n, 16)
    scale = half(raw, 108) * (low | (high << 4)).float().sub_(32)
    q = fields(raw[:, 32:96].view(n, 2, 32), 2).view(n, 16, 16).float()
    # A set third bit means no offset; a clear one takes 4 away.
    third = fields(raw[:, None, :32], 1).view(n, 16, 16).float()
    return q.add_(third.mul_(4)).sub_(4).mul_(scale[:, :, None]).view(n, 256)


def six_bit_scales(raw: Tensor) -> tuple[Tensor, Tensor]:
    """12 bytes -> eight 6-bit scales and eight 6-bit minima, each (n, 8) uint8.

    The first four of each are the low six bits of bytes 0-3 and 4-7; the last four have their
    low nibble in bytes 8-11 and their top two bits in what bytes 0-7 left free.
    """
    a, b, c = raw[:, 0:4], raw[:, 4:8], raw[:, 8:12]
    scale = torch.cat((a & 63, (c & 15) | ((a >> 2) & 48)), dim=1)
    low = torch.cat((b & 63, (c >> 4) | ((b >> 2) & 48)), dim=1)
    return scale, low


def pack_six_bit_scales(scale: Tensor, low: Tensor) -> Tensor:
    """The reverse of `six_bit_scales`: two (n, 8) uint8 -> (n, 12) bytes."""
    a = scale[:, :4] | ((scale[:, 4:] & 48) << 2)
    b = low[:, :4] | ((low[:, 4:] & 48) << 2)
    c = (scale[:, 4:] & 15) | ((low[:, 4:] & 15) << 4)
    return torch.cat((a, b, c), dim=1)


def _with_minima(raw: Tensor, q: Tensor) -> Tensor:
    """q (n, 8, 32) float codes -> d * scale * q - dmin * low, headed by d, dmin, 12 bytes."""
    scale, low = six_bit_scales(raw[:, 4:16])
    scaled = (half(raw, 0) * scale.float())[:, :, None]
    lows = (half(raw, 2) * low.float())[:, :, None]
    return q.mul_(scaled).sub_(lows).view(-1, 256)


def decode_q4_k(raw: Tensor) -> Tensor:
    """d, dmin, 12 bytes of 6-bit scales and minima, 128 bytes of 4-bit codes; sub-blocks of 32."""
    n = len(raw)
    return _with_minima(raw, nibbles(raw[:, 16:].view(n, 4, 32)).view(n, 8, 32).float())


def decode_q5_k(raw: Tensor) -> Tensor:
    """As q4_k, with 32 bytes of fifth bits before the codes."""
    n = len(raw)
    q = nibbles(raw[:, 48:].view(n, 4, 32)).view(n, 8, 32)
    fifth = fields(raw[:, None, 16:48], 1).view(n, 8, 32)
    return _with_minima(raw, (q | (fifth << 4)).float())


def decode_q6_k(raw: Tensor) -> Tensor:
    """128 bytes of low nibbles, 64 of top bit pairs, 16 signed scales, d; sub-blocks of 16."""
    n = len(raw)
    scale = half(raw, 208) * raw[:, 192:208].view(torch.int8).float()
    low = nibbles(raw[:, :128].view(n, 2, 64)).view(n, 256)
    high = fields(raw[:, 128:192].view(n, 2, 32), 2).view(n, 256)
    q = (low | (high << 4)).float().sub_(32).view(n, 16, 16)
    return q.mul_(scale[:, :, None]).view(n, 256)


def decode_iq4_xs(raw: Tensor) -> Tensor:
    """d, 8 top bit pairs and 8 low nibbles of scales, 128 bytes of grid codes; sub-blocks of 32."""
    n = len(raw)
    pair = torch.arange(0, 8, 2, dtype=torch.uint8, device=raw.device)
    high = ((raw[:, 2:4, None] >> pair) & 3).view(n, 8)
    low = torch.stack((raw[:, 4:8] & 15, raw[:, 4:8] >> 4), dim=2).view(n, 8)
    scale = half(raw, 0) * (low | (high << 4)).float().sub_(32)
    q = lookup(IQ4_VALUES, nibbles(raw[:, 8:].view(n, 8, 16)).view(n, 8, 32))
    return q.mul_(scale[:, :, None]).view(n, 256)
