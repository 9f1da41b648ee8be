"""Qwen 3: Qwen 2 without biases and with a norm on each head's queries and keys.

Source: Yang et al. 2025, arXiv 2505.09388. Differs from qwen2.py in: biases, q/k norms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from keifu.checkpoints.names import Names, rules
from keifu.families.llama import Llama
from keifu.families.qwen2 import Qwen2
from keifu.nn.attention import Attention
from keifu.nn.norms import RMSNorm


@dataclass(frozen=True, kw_only=True)
class Qwen3(Qwen2):
    """Configuration; defaults are the published class's."""

    head_width: int | None = 128

    fields = Qwen2.fields.replaced(
        "Qwen3ForCausalLM", "qwen3", keys={"bias": "attention_bias", "head_width": "head_dim"}
    )

    def attention(self) -> Attention:
        """LLaMA's, with normalised heads."""
        assert self.head_width
        norm = RMSNorm(width=self.head_width, eps=self.eps)
        return replace(Llama.attention(self), q_norm=norm, k_norm=norm)

    def names(self) -> Names:
        """Two more norms a layer."""
        table = {
            f"model.layers.{{i}}.self_attn.{x}_norm.weight": f"blocks.{{i}}.mixer.{x}_norm.weight"
            for x in "qk"
        }
        return super().names().replaced(rules(table))


family = Qwen3
