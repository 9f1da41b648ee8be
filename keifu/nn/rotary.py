"""Rotary position embedding (Su et al. 2021) in both layouts, and every published scaling of it."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from keifu.nn.kernels import trained
from keifu.nn.positions import Position
from keifu.nn.step import Step


def frequencies(width: int, base: float) -> Tensor:
    """base^(-2i / width), the angle each pair turns by a position: (width / 2,) float32."""
    return 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width)


class Scaling:
    """How frequencies change to reach beyond the trained length."""

    def frequencies(self, width: int, base: float, length: int) -> tuple[Tensor, float]:
        """(width / 2,) frequencies for a request of up to `length`, and a factor on cos and sin."""
        return frequencies(width, base), 1.0

    @property
    def by_length(self) -> bool:
        """Whether frequencies depend on the request's length."""
        return False


@dataclass(frozen=True)
class Unscaled(Scaling):
    """As trained."""


@dataclass(frozen=True)
class LinearScaling(Scaling):
    """Positions divided by a factor (Chen et al. 2023, position interpolation)."""

    factor: float

    def frequencies(self, width: int, base: float, length: int) -> tuple[Tensor, float]:
        """Plain frequencies over the factor."""
        return frequencies(width, base) / self.factor, 1.0


@dataclass(frozen=True)
class DynamicNTK(Scaling):
    """The base grows with the length once it passes `original` (NTK-aware, dynamic)."""

    factor: float
    original: int

    def frequencies(self, width: int, base: float, length: int) -> tuple[Tensor, float]:
        """base * (factor * length / original - (factor - 1))^(width / (width - 2))."""
        length = max(length, self.original)
        grown = self.factor * length / self.original - (self.factor - 1)
        return frequencies(width, base * grown ** (width / (width - 2))), 1.0

    @property
    def by_length(self) -> bool:
        """Yes."""
        return True


@dataclass(frozen=True)
class QwenNTK(Scaling):
    """Qwen 1's steps: alpha = 2^ceil(log2(length / original) + 1) - 1 past `original`."""

    original: int

    def frequencies(self, width: int, base: float, length: int) -> tuple[Tensor, float]:
        """base * alpha^(width / (width - 2))."""
        alpha = max(2 ** math.ceil(math.log2(length / self.original) + 1) - 1, 1)
        return frequencies(width, base * alpha ** (width / (width - 2))), 1.0

    @property
    def by_length(self) -> bool:
        """Yes."""
        return True


@dataclass(frozen=True)
class YaRN(Scaling):
    """Slow pairs are interpolated, fast ones kept, a ramp between (Peng et al. 2023, section 3)."""

    factor: float
    original: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def _pair(self, turns: float, width: int, base: float) -> float:
        """Which pair makes `turns` full turns over the original length."""
        return width * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(base))

    def _magnitude(self) -> float:
        def grown(by: float) -> float:
            return 1.0 if self.factor <= 1 else 0.1 * by * math.log(self.factor) + 1.0

        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return grown(self.mscale) / grown(self.mscale_all_dim)
        return grown(1.0)

    def frequencies(self, width: int, base: float, length: int) -> tuple[Tensor, float]:
        """A blend by pair of the plain and the interpolated frequencies."""
        low = self._pair(self.beta_fast, width, base)
        high = self._pair(self.beta_slow, width, base)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        span = max(high - low, 1e-3)
        ramp = ((torch.arange(width // 2).float() - low) / span).clamp(0, 1)
        plain = frequencies(width, base)
        return plain / self.factor * ramp + plain * (1 - ramp), self._magnitude()


@dataclass(frozen=True)
class Llama3(Scaling):
    """Llama 3.1: long waves are interpolated, short ones kept, a smooth blend between."""

    factor: float
    low: float
    high: float
    original: int

    def frequencies(self, width: int, base: float, length: int) -> tuple[Tensor, float]:
        """By wavelength against original / low and original / high."""
        plain = frequencies(width, base)
        wave = 2 * math.pi / plain
        smooth = (self.original / wave - self.low) / (self.high - self.low)
        blend = (1 - smooth) * plain / self.factor + smooth * plain
        out = torch.where(wave > self.original / self.low, plain / self.factor, blend)
        return torch.where(wave < self.original / self.high, plain, out), 1.0


@dataclass(frozen=True)
class LongRope(Scaling):
    """A factor a pair, one list within the original length, one beyond (Ding et al. 2024)."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    attention_factor: float

    def frequencies(self, width: int, base: float, length: int) -> tuple[Tensor, float]:
        """Plain frequencies over the list that the length calls for."""
        chosen = self.long if length > self.original else self.short
        factors = torch.tensor(chosen, dtype=torch.float32)
        return 1.0 / (factors * base ** (torch.arange(0, width, 2).float() / width)), (
            self.attention_factor
        )

    @property
    def by_length(self) -> bool:
        """Yes."""
        return True


@dataclass(frozen=True)
class Rotary(Position):
    """The first `width` dimensions of queries and keys turn by their position.

    Layout "half" pairs dimension i with i + width / 2 (GPT-NeoX, LLaMA in Hugging Face folders);
    "interleaved" pairs 2i with 2i + 1 (the paper, GPT-J, original LLaMA files).
    """

    width: int
    base: float = 10000.0
    layout: str = "half"
    scaling: Scaling = Unscaled()

    def tables(self, step: Step) -> tuple[Tensor, Tensor]:
        """cos and sin, (tokens, width / 2) float32, computed once a step."""
        return step.term(self.key, lambda: self._make(step))

    @property
    def key(self) -> Hashable:
        """What the tables follow from: the name of the step's term."""
        return ("rotary", self.width, self.base, self.scaling)

    def _make(self, step: Step) -> tuple[Tensor, Tensor]:
        if self.scaling.by_length and len(set(step.limits)) > 1:
            rows = [self.at(step.positions[step.span(r)], n) for r, n in enumerate(step.limits)]
            cos, sin = zip(*rows, strict=True)
            return torch.cat(cos), torch.cat(sin)
        return self.at(step.positions, step.limits[0] if step.limits else 0)

    def at(self, positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin (n, width / 2) of positions (n,) in a request that may reach `length`.

        Angles are float32, as models are trained, or float64 where the positions are.
        """
        turn, factor = self.scaling.frequencies(self.width, self.base, length)
        whole = positions if positions.dtype == torch.float64 else positions.float()
        angle = whole[:, None] * turn.to(positions.device)
        return angle.cos().float() * factor, angle.sin().float() * factor

    def rotate(self, q: Tensor, k: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """q, k (tokens, heads, head width) with their first `width` dimensions turned."""
        cos, sin = self.tables(step)
        if self.layout == "half" and trained.turns(q) and trained.turns(k):
            return trained.turned(q, cos, sin), trained.turned(k, cos, sin)
        cos, sin = cos[:, None, :].to(q.dtype), sin[:, None, :].to(q.dtype)
        return self._turn(q, cos, sin), self._turn(k, cos, sin)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rest = x[..., self.width :]
        if self.layout == "half":
            a, b = x[..., : self.width].chunk(2, dim=-1)
            parts = [a * cos - b * sin, b * cos + a * sin]
        else:
            a, b = x[..., : self.width : 2], x[..., 1 : self.width : 2]
            parts = [torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)]
        return torch.cat([*parts, rest] if rest.shape[-1] else parts, dim=-1)
