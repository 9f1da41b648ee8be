"""Qwen 3 MoE: Qwen 3's attention with Qwen 2 MoE's experts, none of them shared.

Source: Yang et al. 2025, arXiv 2505.09388, section 2. Differs from qwen2_moe.py in: q/k norms, no
biases, no shared expert.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from keifu.families._experts import Layers
from keifu.families._fields import Act, Rope
from keifu.families.qwen2 import WINDOWS
from keifu.families.qwen2_moe import Qwen2MoE
from keifu.families.qwen3 import Qwen3
from keifu.nn.attention import Attention


def _slides(layer: int, config: Any) -> bool:
    """All layers, if sliding is switched on."""
    return bool(config.get("use_sliding_window", False))


@dataclass(frozen=True, kw_only=True)
class Qwen3MoE(Qwen2MoE, Qwen3):
    """Configuration; defaults are the published class's."""

    hidden: int = 6144
    heads: int = 32
    kv_heads: int | None = 4
    head_width: int | None = None
    experts: int = 128
    top: int = 8
    expert_hidden: int = 768
    shared_hidden: int | None = None

    fields = Qwen2MoE.fields.replaced(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        keys={"bias": "attention_bias", "head_width": "head_dim"},
        without=("qkv_bias", "shared_hidden"),
        aliases={"num_local_experts": "num_experts"},
        extra=(
            Act(),
            Rope(),
            replace(WINDOWS, rule=_slides),
            Layers(key="mlp_only_layers", ours="dense"),
        ),
    )

    def attention(self) -> Attention:
        """Qwen 3's."""
        return Qwen3.attention(self)

    @classmethod
    def tiny(cls) -> Self:
        """A dense and a sparse layer."""
        return cls(
            vocab=96, width=32, hidden=48, depth=2, heads=4, kv_heads=2, head_width=16,
            context=64, local=(False, False), experts=6, top=3, expert_hidden=12,
            renormalise=True, every=2,
        )  # fmt: skip


family = Qwen3MoE
