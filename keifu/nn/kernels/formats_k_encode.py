"""Quantisers for q4_k and q6_k: scales found by least squares, kept only where they lose less.

For each sub-block several step sizes round the values to integer codes; each rounding fixes a
linear least-squares problem whose solution is the best scale (and minimum) for those codes. The
best of them go to shared 6- or 8-bit integers times a float16, which is then refitted to the
codes. The plain grid from the smallest to the largest value goes the same way, and so does the
exact code of a constant block; whichever decodes with the least squared error is written.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from keifu.nn.kernels.formats_32 import pack_nibbles, stored
from keifu.nn.kernels.formats_k import decode_q4_k, decode_q6_k, pack_six_bit_scales

REFITS = 2
"""Rounds of refitting the float16 scales to the codes; a third gains less than 0.1 %."""


def _over(a: Tensor, b: Tensor) -> Tensor:
    """a / b, or 0 where that is not finite: a zero scale has only the code 0."""
    return (a / b).nan_to_num_(0.0, 0.0, 0.0)


def _as_stored(scale: Tensor) -> Tensor:
    """A scale as float16 keeps it."""
    return scale.half().float()


def _least_loss(x: Tensor, options: list[Tensor], decode: Callable[[Tensor], Tensor]) -> Tensor:
    """For each block of x (n, 256), the encoding (n, bytes) that decodes nearest to it."""
    losses = [(decode(raw) - x).square_().sum(dim=1) for raw in options]
    best = torch.stack(losses).argmin(dim=0)
    return torch.stack(options)[best, torch.arange(len(x), device=x.device)]


# q6_k: x = d * scale * q, scale a signed byte, q from -32 to 31, 16 sub-blocks of 16.


def _q6_codes(x: Tensor, step: Tensor) -> Tensor:
    """Nearest codes of x (n, 16, 16) at steps (n, 16)."""
    return _over(x, step[:, :, None]).round_().clamp_(-32, 31)


def _q6_steps(x: Tensor) -> Tensor:
    """The step of least squared error for each sub-block of x (n, 16, 16) -> (n, 16)."""
    largest = x.abs().amax(dim=2)
    best = largest / 31
    best_gain = torch.zeros_like(best)
    for reach in torch.linspace(28, 34, 13).tolist():
        for sign in (1.0, -1.0):  # one side holds 32 steps, the other 31
            q = _q6_codes(x, largest / (sign * reach))
            product, square = (x * q).sum(dim=2), (q * q).sum(dim=2)
            gain = _over(product * product, square)  # what the codes take off the squared error
            best = torch.where(gain > best_gain, _over(product, square), best)
            best_gain = torch.maximum(gain, best_gain)
    return best


def _q6_blocks(x: Tensor, d: Tensor, scale: Tensor) -> Tensor:
    """x (n, 16, 16), d (n, 1) as stored, scale (n, 16) whole -> blocks (n, 210)."""
    n = len(x)
    q = (_q6_codes(x, d * scale) + 32).to(torch.uint8)
    low = pack_nibbles((q & 15).view(n, 2, 2, 64))
    pairs = (q >> 4).view(n, 2, 4, 32)
    high = pairs[:, :, 0] | (pairs[:, :, 1] << 2) | (pairs[:, :, 2] << 4) | (pairs[:, :, 3] << 6)
    return torch.cat((low, high.flatten(1), scale.to(torch.int8).view(torch.uint8), stored(d)), 1)


def _q6_options(x: Tensor, steps: Tensor, widest_scale: int) -> list[Tensor]:
    """Encodings of x (n, 16, 16) from wanted steps (n, 16), the later ones with d refitted."""
    widest = steps.gather(1, steps.abs().argmax(dim=1, keepdim=True))
    d = _as_stored(widest / widest_scale)
    scale = _over(steps, d).round_().clamp_(-128, 127)
    options = [_q6_blocks(x, d, scale)]
    for _ in range(REFITS):
        code = (scale[:, :, None] * _q6_codes(x, d * scale)).flatten(1)
        product, square = (code * x.flatten(1)).sum(1, True), (code * code).sum(1, True)
        d = _as_stored(_over(product, square))
        options.append(_q6_blocks(x, d, scale))
    return options


def encode_q6_k(x: Tensor) -> Tensor:
    """x (n, 256) float32 -> blocks (n, 210)."""
    parts = x.view(-1, 16, 16)
    options = _q6_options(parts, _q6_steps(parts), -128)
    options += _q6_options(parts, parts.abs().amax(dim=2) / 31, 127)
    options.append(_q6_blocks(parts, _as_stored(x[:, :1]), torch.ones_like(parts[:, :, 0])))
    return _least_loss(x, options, decode_q6_k)


# q4_k: x = d * scale * q - dmin * low, scale and low from 0 to 63, q from 0 to 15, 8 sub-blocks
# of 32.


def _q4_codes(x: Tensor, step: Tensor, low: Tensor) -> Tensor:
    """Nearest codes of x (n, 8, 32) at steps and (negated) minima (n, 8)."""
    return _over(x + low[:, :, None], step[:, :, None]).round_().clamp_(0, 15)


def _q4_grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Fifteen steps from the smallest value (at most 0) to the largest: steps and minima (n, 8)."""
    low = -x.amin(dim=2).clamp_(max=0)
    return (x.amax(dim=2) + low) / 15, low


def _q4_steps(x: Tensor) -> tuple[Tensor, Tensor]:
    """Step and minimum of least squared error for each sub-block of x (n, 8, 32), each (n, 8)."""
    step, low = start = _q4_grid(x)
    codes = _q4_codes(x, step, low)
    loss = (codes * step[:, :, None] - low[:, :, None] - x).square_().sum(dim=2)
    total = x.sum(dim=2)
    for reach in torch.linspace(12.5, 17.5, 21).tolist():
        q = _q4_codes(x, start[0] * (15 / reach), start[1])
        ones, squares, products = q.sum(dim=2), (q * q).sum(dim=2), (q * x).sum(dim=2)
        slope = _over(32 * products - total * ones, 32 * squares - ones * ones)
        offset = (total - slope * ones) / 32
        # A minimum cannot be above zero: without one, the line goes through the origin.
        slope = torch.where(offset > 0, _over(products, squares), slope)
        offset = offset.clamp_(max=0)
        error = (q * slope[:, :, None] + offset[:, :, None] - x).square_().sum(dim=2)
        better = (error < loss) & (slope > 0)
        step, low = torch.where(better, slope, step), torch.where(better, -offset, low)
        loss = torch.where(better, error, loss)
    return step, low


def _q4_blocks(x: Tensor, d: Tensor, dmin: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    """x (n, 8, 32), d and dmin (n, 1) as stored, scale and low (n, 8) whole -> blocks (n, 144)."""
    q = _q4_codes(x, d * scale, dmin * low).to(torch.uint8).view(-1, 4, 2, 32)
    packed = pack_six_bit_scales(scale.to(torch.uint8), low.to(torch.uint8))
    return torch.cat((stored(d, dmin), packed, pack_nibbles(q)), dim=1)


def _q4_refit(x: Tensor, code: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """d and dmin (n, 1) of least squared error in x = d * code - dmin * low, all (n, 256)."""
    cc, cl, ll = (code * code).sum(1, True), (code * low).sum(1, True), (low * low).sum(1, True)
    xc, xl = (x * code).sum(1, True), (x * low).sum(1, True)
    determinant = cc * ll - cl * cl
    d = torch.where(ll > 0, _over(xc * ll - xl * cl, determinant), _over(xc, cc))
    dmin = torch.where(cc > 0, _over(xc * cl - xl * cc, determinant), _over(-xl, ll))
    return _as_stored(d.clamp_(min=0)), _as_stored(dmin.clamp_(min=0))


def _q4_options(x: Tensor, step: Tensor, low: Tensor) -> list[Tensor]:
    """Encodings of x (n, 8, 32) from wanted steps and minima, the later with d, dmin refitted."""
    d = _as_stored(step.amax(dim=1, keepdim=True) / 63)
    dmin = _as_stored(low.amax(dim=1, keepdim=True) / 63)
    scale = _over(step, d).round_().clamp_(0, 63)
    lows = _over(low, dmin).round_().clamp_(0, 63)
    options = [_q4_blocks(x, d, dmin, scale, lows)]
    wide = lows[:, :, None].expand_as(x).flatten(1)
    for _ in range(REFITS):
        code = scale[:, :, None] * _q4_codes(x, d * scale, dmin * lows)
        d, dmin = _q4_refit(x.flatten(1), code.flatten(1), wide)
        options.append(_q4_blocks(x, d, dmin, scale, lows))
    return options


def encode_q4_k(x: Tensor) -> Tensor:
    """x (n, 256) float32 -> blocks (n, 144)."""
    parts = x.view(-1, 8, 32)
    options = _q4_options(parts, *_q4_steps(parts)) + _q4_options(parts, *_q4_grid(parts))
    first, ones = x[:, :1], torch.ones_like(parts[:, :, 0])
    up, down = _as_stored(first.clamp(min=0)), _as_stored(-first.clamp(max=0))
    options.append(_q4_blocks(parts, up, down, ones * (up > 0), ones * (down > 0)))
    return _least_loss(x, options, decode_q4_k)
