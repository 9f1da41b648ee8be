"""GPT-3: GPT-2 whose layers are dense and locally banded in turn.

Source: Brown et al. 2020, arXiv 2005.14165, section 2.1 and table 2.1; Child et al. 2019, arXiv
1904.10509. The width of the band is unpublished: 256 is GPT-Neo's. The weights are closed, so the
config.json is GPT-2's with GPT-Neo's `attention_layers` and `window_size`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from keifu.core.errors import ConfigError
from keifu.families._fields import NEW_ACTS, Act
from keifu.families._keys import Words
from keifu.families.gpt_2 import GPT2
from keifu.nn.attention import Attention
from keifu.nn.masks import Causal, Window

_BANDS = Words(key="attention_layers", ours="banded", yes="local", no="global")


@dataclass(frozen=True, kw_only=True)
class GPT3(GPT2):
    """Configuration; defaults are the 175B model's."""

    width: int = 12288
    depth: int = 96
    heads: int = 96
    context: int = 2048
    head_width: int | None = None
    """13B: 40 heads of 128 in a stream of 5140."""
    banded: tuple[bool, ...] = ()
    """One flag a layer; empty: every other, beginning with a dense one."""
    window: int = 256

    fields = GPT2.fields.replaced(
        "GPT3LMHeadModel",
        "gpt3",
        keys={"head_width": "head_dim", "window": "window_size"},
        without=("scaled", "by_layer"),
        extra=(Act(key="activation_function", known=NEW_ACTS), _BANDS),
    )

    def __post_init__(self) -> None:
        flags = self.banded or tuple(i % 2 == 1 for i in range(self.depth))
        object.__setattr__(self, "banded", flags)
        object.__setattr__(self, "head_width", self.head_width or self.width // self.heads)
        super().__post_init__()

    def check(self) -> None:
        """A flag for every layer, a band of some width."""
        super().check()
        if len(self.banded) != self.depth:
            raise ConfigError(f"attention_layers: {len(self.banded)} for {self.depth} layers")
        if self.window < 1:
            raise ConfigError(f"window_size={self.window} is not allowed: a whole number above 0")

    @property
    def head_size(self) -> int:
        """As published."""
        return self.head_width or super().head_size

    def attention(self, layer: int) -> Attention:
        """Dense, or the last `window` positions."""
        mask = Causal() & Window(self.window) if self.banded[layer] else Causal()
        return replace(super().attention(layer), mask=mask)

    @classmethod
    def tiny(cls) -> Self:
        """A dense and a banded layer."""
        return cls(vocab=96, width=32, hidden=48, depth=2, heads=4, context=64, window=4)


family = GPT3
