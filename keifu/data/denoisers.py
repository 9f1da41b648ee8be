"""A mixture of denoisers: short spans, long ones and the rest of a text, each with a sign before.

Source: Tay et al. 2022, arXiv 2205.05131 (UL2), section 3.1 and table 1 (its numbers); the released
model spells the signs [NLU], [NLG] and [S2S].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from keifu.core.errors import KeifuError
from keifu.data.span_corruption import Random, SpanCorruption

Mode = Literal["R", "S", "X"]
SPELT: dict[Mode, tuple[str, ...]] = {
    "R": ("[NLU]", "[R]"),
    "S": ("[S2S]", "[S]"),
    "X": ("[NLG]", "[X]"),
}
"""What the signs are called, in the order in which they are looked for."""


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """One of them."""

    mode: Mode
    density: float
    """Share of the tokens that are to be written."""
    mean: float | None = None
    """Tokens of a span, on average; None: the text's end, in one span."""

    def __call__(
        self, ids: Sequence[int], sentinels: Sequence[int], random: Random
    ) -> tuple[list[int], list[int]]:
        """(input, target) of a text of two tokens or more."""
        if len(ids) < 2:
            raise KeifuError(f"a text of {len(ids)} tokens has nothing to keep and to drop")
        if not sentinels:
            raise KeifuError("the tokenizer has no <extra_id_0>: extend it with sentinel tokens")
        if self.mean is None:
            most = max(1, min(len(ids) - 1, round(2 * self.density * len(ids)) - 1))
            cut = len(ids) - int(random.integers(1, most + 1))
            return [*ids[:cut], sentinels[0]], [sentinels[0], *ids[cut:]]
        wide = max(1.0, min(self.mean, self.density * len(ids)))
        noise = SpanCorruption(sentinels=tuple(sentinels), density=self.density, mean=wide)
        return noise(ids, random)


UL2 = (
    Denoiser(mode="R", density=0.15, mean=3),
    Denoiser(mode="R", density=0.15, mean=8),
    Denoiser(mode="S", density=0.25),
    Denoiser(mode="X", density=0.5, mean=3),
    Denoiser(mode="X", density=0.5, mean=8),
    Denoiser(mode="X", density=0.15, mean=64),
    Denoiser(mode="X", density=0.5, mean=64),
)
"""The paper's seven, each as likely as any other."""
