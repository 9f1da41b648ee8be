"""Qwen 2 and 2.5: LLaMA's block with biases on q, k and v; upper layers may slide.

Source: Yang et al. 2024, arXiv 2407.10671. Differs from llama.py in: the biases, the masks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from keifu.families._fields import Act, Rope, Windows
from keifu.families.llama import Llama
from keifu.nn.attention import Attention
from keifu.nn.block import Block
from keifu.nn.masks import Causal, Window
from keifu.nn.stack import Stack


def _slides(layer: int, config: Any) -> bool:
    """Layers from `max_window_layers` on, if sliding is switched on at all."""
    switched = bool(config.get("use_sliding_window", False))
    return switched and layer >= int(config.get("max_window_layers", 28))


WINDOWS = Windows(
    rule=_slides, window=None, switch="use_sliding_window",
    also=frozenset(("use_sliding_window", "max_window_layers")),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Qwen2(Llama):
    """Configuration; defaults are the published class's."""

    vocab: int = 151936
    hidden: int = 22016
    context: int = 32768
    window: int | None = None
    local: tuple[bool, ...] = ()

    fields = Llama.fields.replaced(
        "Qwen2ForCausalLM",
        "qwen2",
        without=("bias", "mlp_bias"),
        extra=(
            Act(),
            Rope(),
            WINDOWS,
        ),
    )

    def attention(self) -> Attention:
        """Biases on the inputs, none on the output."""
        return replace(super().attention(), qkv_bias=True)

    def spec(self) -> Stack:
        """LLaMA's stack, layer by layer."""
        return replace(super().spec(), blocks=tuple(map(self.layer, range(self.depth))))

    def layer(self, index: int) -> Block:
        """One layer: sliding where `local` says so."""
        block = self.block()
        if not (self.local and self.local[index] and self.window):
            return block
        mixer = replace(self.attention(), mask=Causal() & Window(self.window))
        return replace(block, mixer=mixer)

    @classmethod
    def tiny(cls) -> Self:
        """One full and one sliding layer."""
        return cls(
            vocab=96, width=32, hidden=48, depth=2, heads=4, kv_heads=2, context=64,
            window=4, local=(False, True),
        )  # fmt: skip


family = Qwen2
