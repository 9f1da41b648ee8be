"""Phi-3: LLaMA's block with projections published fused, partial rotary and LongRoPE.

Source: Abdin et al. 2024, arXiv 2404.14219. Differs from llama.py in: names, rotary, the mask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from keifu.checkpoints.names import Names, rules
from keifu.families._fields import Act, Rope
from keifu.families.mistral import Mistral
from keifu.nn.attention import Attention
from keifu.nn.rotary import Rotary


@dataclass(frozen=True, kw_only=True)
class Phi3(Mistral):
    """Configuration; defaults are Phi-3-mini's."""

    vocab: int = 32064
    width: int = 3072
    hidden: int = 8192
    kv_heads: int | None = 32
    context: int = 4096
    eps: float = 1e-5
    window: int | None = None
    rotary: float = 1.0
    """Share of each head that turns."""

    fields = Mistral.fields.replaced(
        "Phi3ForCausalLM",
        "phi3",
        without=("head_width",),
        extra=(Act(), Rope(fraction="rotary")),
    )

    def attention(self) -> Attention:
        """The first part of each head turns."""
        assert self.head_width
        turned = int(self.head_width * self.rotary)
        position = Rotary(turned, base=self.rope_base, scaling=self.scaling)
        return replace(super().attention(), position=position)

    def names(self) -> Names:
        """q, k, v and gate, up are published as one matrix each, as we keep them."""
        layer, ours = "model.layers.{i}", "blocks.{i}"
        table = {
            f"{layer}.self_attn.qkv_proj.{{p}}": f"{ours}.mixer.qkv.{{p}}",
            f"{layer}.mlp.gate_up_proj.{{p}}": f"{ours}.mlp.gate_up.{{p}}",
        }
        return super().names().replaced(rules(table))

    @classmethod
    def tiny(cls) -> Self:
        """Half of each head turns."""
        return cls(
            vocab=96, width=32, hidden=48, depth=2, heads=4, kv_heads=2, context=64,
            window=5, rotary=0.5,
        )  # fmt: skip


family = Phi3
