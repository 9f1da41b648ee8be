"""Packed formats with one scale for 32 values: q4_0, q4_1, q5_0, q5_1, q8_0, iq4_nl, mxfp4.

A decoder takes blocks (n, bytes) uint8 and returns (n, 32) float32; an encoder does the reverse.
Arithmetic follows the order of operations of ggml's reference code, so results are the same
to the last bit: scale times integer, then the offset, each rounded to float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The non-linear 4-bit grid of iq4_nl and iq4_xs."""
E2M1_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Four-bit floats of the OCP microscaling standard, doubled to be whole."""


def half(raw: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of each block (n, bytes) as float32 (n, 1)."""
    return raw[:, at : at + 2].contiguous().view(torch.float16).float()


def nibbles(qs: Tensor) -> Tensor:
    """(n, groups, w) bytes -> (n, groups, 2, w): each group's low halves, then its high ones."""
    return torch.stack((qs & 15, qs >> 4), dim=2)


def fields(qs: Tensor, bits: int) -> Tensor:
    """(n, groups, w) bytes -> (n, groups, 8 / bits, w): bit fields, lowest first."""
    mask = (1 << bits) - 1
    return torch.stack([(qs >> shift) & mask for shift in range(0, 8, bits)], dim=2)


def lookup(values: tuple[int, ...], codes: Tensor) -> Tensor:
    """Each code's value as float32."""
    return torch.tensor(values, dtype=torch.float32, device=codes.device)[codes.int()]


def decode_q4_0(raw: Tensor) -> Tensor:
    """d, 16 bytes: d * (q - 8)."""
    q = nibbles(raw[:, None, 2:]).view(-1, 32).float()
    return q.sub_(8).mul_(half(raw, 0))


def decode_q4_1(raw: Tensor) -> Tensor:
    """d, m, 16 bytes: d * q + m."""
    q = nibbles(raw[:, None, 4:]).view(-1, 32).float()
    return q.mul_(half(raw, 0)).add_(half(raw, 2))


def _fifth_bits(raw: Tensor, at: int) -> Tensor:
    """Four bytes of high bits (n, 32), value i in bit i, as 16 or 0."""
    spread = torch.arange(8, dtype=torch.uint8, device=raw.device)
    return (((raw[:, at : at + 4, None] >> spread) & 1) << 4).view(-1, 32)


def decode_q5_0(raw: Tensor) -> Tensor:
    """d, 4 bytes of fifth bits, 16 bytes: d * (q - 16)."""
    q = nibbles(raw[:, None, 6:]).view(-1, 32) | _fifth_bits(raw, 2)
    return q.float().sub_(16).mul_(half(raw, 0))


def decode_q5_1(raw: Tensor) -> Tensor:
    """d, m, 4 bytes of fifth bits, 16 bytes: d * q + m."""
    q = nibbles(raw[:, None, 8:]).view(-1, 32) | _fifth_bits(raw, 4)
    return q.float().mul_(half(raw, 0)).add_(half(raw, 2))


def decode_q8_0(raw: Tensor) -> Tensor:
    """d, 32 signed bytes: d * q."""
    return raw[:, 2:].view(torch.int8).float().mul_(half(raw, 0))


def decode_iq4_nl(raw: Tensor) -> Tensor:
    """d, 16 bytes of codes into the non-linear grid."""
    return lookup(IQ4_VALUES, nibbles(raw[:, None, 2:]).view(-1, 32)).mul_(half(raw, 0))


def decode_mxfp4(raw: Tensor) -> Tensor:
    """A power of two (E8M0, halved because the grid is doubled), 16 bytes of E2M1 codes."""
    exponent = raw[:, :1].int()
    # Exponents 0 and 1 are the float32 subnormals 2^-128 and 2^-127.
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)
    values = lookup(E2M1_VALUES, nibbles(raw[:, None, 1:]).view(-1, 32))
    return values.mul_(bits.view(torch.float32))


def _inverse(d: Tensor) -> Tensor:
    """1 / d, or 0 where d is zero or too small to have a finite inverse."""
    inverse = 1 / d
    return torch.where(inverse.isfinite(), inverse, 0.0)


def stored(*scales: Tensor) -> Tensor:
    """Columns (n, 1) of scales as the float16 bytes that a block stores."""
    return torch.cat([s.half() for s in scales], dim=1).view(torch.uint8)


def pack_nibbles(q: Tensor) -> Tensor:
    """(n, groups, 2, w) codes below 16 -> (n, groups * w) bytes; undoes `nibbles`."""
    return (q[:, :, 0] | (q[:, :, 1] << 4)).flatten(1)


def _nearest(q: Tensor) -> Tensor:
    """Codes (n, 32), already offset by half a step -> bytes of 4-bit codes (n, 16)."""
    return pack_nibbles(q.trunc_().clamp_(0, 15).to(torch.uint8).view(-1, 1, 2, 16))


def encode_q4_0(x: Tensor) -> Tensor:
    """The value of largest magnitude becomes -8 steps."""
    largest = x.gather(1, x.abs().argmax(dim=1, keepdim=True))
    d = largest / -8
    return torch.cat((stored(d), _nearest((x * _inverse(d)).add_(8.5))), dim=1)


def encode_q4_1(x: Tensor) -> Tensor:
    """Fifteen steps from the smallest to the largest value."""
    low, high = x.aminmax(dim=1, keepdim=True)
    d = (high - low) / 15
    return torch.cat((stored(d, low), _nearest((x - low).mul_(_inverse(d)).add_(0.5))), dim=1)


def encode_q8_0(x: Tensor) -> Tensor:
    """The largest magnitude becomes 127 steps; halves round away from zero."""
    d = x.abs().amax(dim=1, keepdim=True) / 127
    scaled = x * _inverse(d)
    size = scaled.abs()
    whole = size.floor()
    q = scaled.sign() * (whole + (2 * (size - whole)).floor())
    return torch.cat((stored(d), q.to(torch.int8).view(torch.uint8)), dim=1)
