"""Gemma: wide heads, GeGLU, norms stored around zero, embeddings scaled by sqrt(width), tied head.

Source: Gemma Team 2024, arXiv 2403.08295. Differs from llama.py in: norm, act, input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from keifu.families.llama import Llama
from keifu.nn.inputs import Tokens
from keifu.nn.norms import RMSNorm
from keifu.nn.stack import Stack


@dataclass(frozen=True, kw_only=True)
class Gemma(Llama):
    """Configuration; defaults are Gemma-7B's."""

    vocab: int = 256000
    width: int = 3072
    hidden: int = 24576
    depth: int = 28
    heads: int = 16
    kv_heads: int | None = 16
    head_width: int | None = 256
    context: int = 8192
    act: str = "gelu_tanh"
    tied: bool = True

    fields = Llama.fields.replaced(
        "GemmaForCausalLM",
        "gemma",
        without=("mlp_bias",),
        fixed={"use_bidirectional_attention": None},
        # Older files carry "gelu" here, which the models were never run with.
        ignore=frozenset({"hidden_activation"}),
    )

    def norm(self, width: int | None = None) -> RMSNorm:
        """Weights are stored as w - 1."""
        return RMSNorm(width=width or self.width, eps=self.eps, offset=1.0)

    def spec(self) -> Stack:
        """LLaMA's stack with a scaled input."""
        tokens = Tokens(vocab=self.vocab, width=self.width, scale=math.sqrt(self.width))
        return replace(super().spec(), input=tokens)

    @classmethod
    def tiny(cls) -> Self:
        """Heads wider than width / heads."""
        return cls(
            vocab=96, width=32, hidden=48, depth=2, heads=4, kv_heads=1, head_width=16, context=64
        )


family = Gemma
