"""GPT-NeoX Japanese (ABEJA): GPT-NeoX one branch after the other, without biases.

Source: ABEJA 2022, the released model and its code. Differs from gpt_neox.py in: wiring, rotary
over the whole head, and a single bias of projections: the last layer's after attention.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from keifu.checkpoints.names import Names, rules
from keifu.families._fields import Act, Rope
from keifu.families.gpt_neox import GPTNeoX
from keifu.nn.attention import Attention


@dataclass(frozen=True, kw_only=True)
class GPTNeoXJapanese(GPTNeoX):
    """Configuration; defaults are gpt-neox-japanese-2.7b's."""

    vocab: int = 32000
    width: int = 2560
    multiple: float = 4
    """The MLP's width over the stream's."""
    depth: int = 32
    heads: int = 32
    rotary: float = 1.0
    parallel: bool = False
    bias: bool = False
    tied: bool = True

    fields = GPTNeoX.fields.replaced(
        "GPTNeoXJapaneseForCausalLM",
        "gpt_neox_japanese",
        keys={"multiple": "intermediate_multiple_size"},
        without=("hidden", "attention_bias", "parallel"),
        extra=(Act(), Rope(fraction="rotary")),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", int(self.width * self.multiple))
        super().__post_init__()

    def attention(self, layer: int) -> Attention:
        """The last layer's output has a bias."""
        return replace(super().attention(layer), qkv_bias=False, out_bias=layer == self.depth - 1)

    def names(self) -> Names:
        """The one bias has a name of its own."""
        layer, ours = "gpt_neox_japanese.layers.{i}.attention", "blocks.{i}.mixer.out"
        table = {f"{layer}.dense.weight": f"{ours}.weight", f"{layer}.dense_bias": f"{ours}.bias"}
        named = super().names().under("gpt_neox.", "gpt_neox_japanese.")
        return replace(named.replaced(rules(table)), base="gpt_neox_japanese.")

    @classmethod
    def tiny(cls) -> Self:
        """Two layers, one of them with the bias."""
        return cls(vocab=96, width=32, multiple=2, depth=2, heads=4, context=64)


family = GPTNeoXJapanese
