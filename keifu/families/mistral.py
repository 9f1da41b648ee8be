"""Mistral: LLaMA's block with grouped queries and a sliding window in every layer.

Source: Jiang et al. 2023, arXiv 2310.06825. Differs from llama.py in: the mask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from keifu.families.llama import Llama
from keifu.nn.attention import Attention
from keifu.nn.masks import Causal, Window


@dataclass(frozen=True, kw_only=True)
class Mistral(Llama):
    """Configuration; defaults are Mistral-7B's."""

    hidden: int = 14336
    kv_heads: int | None = 8
    context: int = 131072
    window: int | None = 4096

    fields = Llama.fields.replaced(
        "MistralForCausalLM",
        "mistral",
        keys={"window": "sliding_window"},
        without=("bias", "mlp_bias"),
        nullable=frozenset({"window"}),
    )

    def attention(self) -> Attention:
        """LLaMA's, seeing the last `window` positions."""
        mask = Causal() & Window(self.window) if self.window else Causal()
        return replace(super().attention(), mask=mask)

    @classmethod
    def tiny(cls) -> Self:
        """A window shorter than the tests' sequences."""
        return cls(
            vocab=96, width=32, hidden=48, depth=2, heads=4, kv_heads=2, head_width=8,
            context=64, window=4,
        )  # fmt: skip


family = Mistral
