"""Phi-1, 1.5 and 2: attention and MLP in parallel from one norm, part of each head turns, biases.

Source: Li et al. 2023, arXiv 2309.05463 (Phi-1.5), and the released code. Differs from gpt_neox.py
in: one norm for both branches, biases everywhere (of the head too), published names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from keifu.checkpoints.names import Names, rules
from keifu.families._decoder import Decoder
from keifu.families._fields import NEW_ACTS, Act, Fields, Rope
from keifu.nn.attention import Attention
from keifu.nn.heads import LMHead
from keifu.nn.norms import LayerNorm
from keifu.nn.rotary import Rotary, Scaling, Unscaled
from keifu.nn.wiring import Parallel, Wiring


@dataclass(frozen=True, kw_only=True)
class Phi(Decoder):
    """Configuration; defaults are Phi-1.5's."""

    vocab: int = 51200
    width: int = 2048
    depth: int = 24
    heads: int = 32
    kv_heads: int | None = None
    tied: bool = False
    qk_norm: bool = False
    """Queries and keys of all heads go through one norm of a head's width."""
    rotary: float = 0.5
    """Share of each head that turns."""
    rope_base: float = 10000.0
    scaling: Scaling = Unscaled()

    fields = Fields(
        architecture="PhiForCausalLM",
        model_type="phi",
        keys={
            "vocab": "vocab_size",
            "width": "hidden_size",
            "hidden": "intermediate_size",
            "depth": "num_hidden_layers",
            "heads": "num_attention_heads",
            "kv_heads": "num_key_value_heads",
            "context": "max_position_embeddings",
            "eps": "layer_norm_eps",
            "tied": "tie_word_embeddings",
            "qk_norm": "qk_layernorm",
        },
        extra=(Act(known=NEW_ACTS), Rope(fraction="rotary")),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        super().__post_init__()

    def attention(self, layer: int) -> Attention:
        """Part of each head turns."""
        assert self.kv_heads
        turned = int(self.head_size * self.rotary)
        own = LayerNorm(width=self.head_size, eps=self.eps) if self.qk_norm else None
        return replace(
            super().attention(layer),
            kv_heads=self.kv_heads,
            position=Rotary(turned, base=self.rope_base, scaling=self.scaling),
            q_norm=own,
            k_norm=own,
        )

    def wiring(self) -> Wiring:
        """One norm for both branches."""
        return Parallel(norm=self.norm())

    def head(self) -> LMHead:
        """With a bias."""
        return replace(super().head(), bias=True)

    def names(self) -> Names:
        """The names of the Hugging Face port."""
        layer, ours = "model.layers.{i}", "blocks.{i}"
        table = {
            "model.embed_tokens.weight": "input.table.weight",
            f"{layer}.input_layernorm.{{p}}": f"{ours}.norms.mixer_norm.{{p}}",
            f"{layer}.self_attn.{{q,k,v}}_proj.{{p}}": f"{ours}.mixer.qkv.{{p}}",
            f"{layer}.self_attn.dense.{{p}}": f"{ours}.mixer.out.{{p}}",
            f"{layer}.self_attn.q_layernorm.{{p}}": f"{ours}.mixer.q_norm.{{p}}",
            f"{layer}.self_attn.k_layernorm.{{p}}": f"{ours}.mixer.k_norm.{{p}}",
            f"{layer}.mlp.fc1.{{p}}": f"{ours}.mlp.up.{{p}}",
            f"{layer}.mlp.fc2.{{p}}": f"{ours}.mlp.down.{{p}}",
            "model.final_layernorm.{p}": "norm.{p}",
            "lm_head.{p}": "head.out.{p}",
            "lm_head.bias": "head.bias",
        }
        return Names(
            rules(table), drop=(r".*rotary_emb\.inv_freq", r"lm_head\.weight"), base="model."
        )

    @classmethod
    def tiny(cls) -> Self:
        """Grouped queries, norms of heads."""
        return cls(
            vocab=96, width=32, hidden=48, depth=2, heads=4, kv_heads=2, context=64, qk_norm=True
        )


family = Phi
