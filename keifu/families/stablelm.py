"""StableLM: LayerNorm, a quarter of each head turns, SwiGLU; version 2 adds biases and q/k norms.

Source: Stability AI 2023 (StableLM-3B-4E1T); Bellagente et al. 2024, arXiv 2402.17834. Differs
from llama.py in: norms, rotary, wiring. The alpha models of 2023 are GPT-NeoX.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from keifu.checkpoints.names import Names, OneOf, Rule, numbered
from keifu.families._fields import Act, Rope
from keifu.families.llama import Llama
from keifu.nn.attention import Attention
from keifu.nn.block import Block
from keifu.nn.norms import LayerNorm, PerHeadNorm
from keifu.nn.rotary import Rotary
from keifu.nn.stack import Stack
from keifu.nn.wiring import Parallel, Pre, Wiring


@dataclass(frozen=True, kw_only=True)
class StableLM(Llama):
    """Configuration; defaults are StableLM-3B-4E1T's."""

    vocab: int = 50304
    width: int = 2560
    hidden: int = 6912
    kv_heads: int | None = 32
    context: int = 4096
    eps: float = 1e-5
    rotary: float = 0.25
    """Share of each head that turns."""
    head_norms: bool = False
    """Each head's queries and keys have a norm of their own (version 2, 12B)."""
    parallel: bool = False

    fields = Llama.fields.replaced(
        "StableLmForCausalLM",
        "stablelm",
        keys={
            "eps": "layer_norm_eps",
            "bias": "use_qkv_bias",
            "head_norms": "qk_layernorm",
            "parallel": "use_parallel_residual",
        },
        without=("mlp_bias", "head_width"),
        extra=(Act(), Rope(fraction="rotary")),
    )

    def attention(self) -> Attention:
        """Part of each head turns; biases on the inputs alone."""
        assert self.head_width
        assert self.kv_heads
        turned = int(self.head_width * self.rotary)
        mixer = replace(
            super().attention(),
            position=Rotary(turned, base=self.rope_base, scaling=self.scaling),
            out_bias=False,
        )
        if not self.head_norms:
            return mixer
        q = PerHeadNorm(heads=self.heads, width=self.head_width, eps=self.eps)
        return replace(mixer, q_norm=q, k_norm=replace(q, heads=self.kv_heads))

    def block(self) -> Block:
        """Sequential, or parallel from one norm."""
        norm = LayerNorm(width=self.width, eps=self.eps)
        wiring: Wiring = Parallel(norm=norm) if self.parallel else Pre(norm=norm)
        return replace(super().block(), wiring=wiring)

    def spec(self) -> Stack:
        """LLaMA's stack with another last norm."""
        return replace(super().spec(), norm=LayerNorm(width=self.width, eps=self.eps))

    def names(self) -> Names:
        """The norms of heads are published one by one."""
        assert self.kv_heads
        counts = {"q": self.heads, "k": self.kv_heads}
        norms = [
            Rule(
                f"model.layers.{{i}}.self_attn.{x}_layernorm.norms.{numbered(n)}.weight",
                f"blocks.{{i}}.mixer.{x}_norm.weight",
                (OneOf(),),
            )
            for x, n in counts.items()
        ]
        return super().names().replaced(norms)

    @classmethod
    def tiny(cls) -> Self:
        """Version 2's options."""
        return cls(
            vocab=96, width=32, hidden=48, depth=2, heads=4, kv_heads=2, context=64,
            rotary=0.5, bias=True, head_norms=True,
        )  # fmt: skip


family = StableLM
