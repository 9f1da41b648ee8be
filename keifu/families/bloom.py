"""BLOOM: ALiBi, a norm right after the token vectors, tied head.

Source: BigScience 2022, arXiv 2211.05100; ALiBi: arXiv 2108.12409. Differs from gpt_2.py in:
positions, the input's norm; queries, keys and values are published head by head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from keifu.checkpoints.names import Names, grouped_qkv, rules
from keifu.families._decoder import Decoder
from keifu.families._fields import Fields
from keifu.nn.attention import Attention
from keifu.nn.inputs import Tokens
from keifu.nn.positions import Alibi


@dataclass(frozen=True, kw_only=True)
class Bloom(Decoder):
    """Configuration; defaults are BLOOM-176B's."""

    vocab: int = 250880
    width: int = 14336
    depth: int = 70
    heads: int = 112

    fields = Fields(
        architecture="BloomForCausalLM",
        model_type="bloom",
        keys={
            "vocab": "vocab_size",
            "width": "hidden_size",
            "depth": "n_layer",
            "heads": "n_head",
            "context": "seq_length",
            "eps": "layer_norm_epsilon",
            "tied": "tie_word_embeddings",
        },
        fixed={"apply_residual_connection_post_layernorm": False, "n_inner": None},
        ignore=frozenset(
            "slow_but_exact offset_alibi skip_bias_add skip_bias_add_qkv masked_softmax_fusion "
            "attention_softmax_in_fp32 bias_dropout_fusion".split()
        ),
        aliases={
            "n_embed": "hidden_size",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
        },
    )

    def input(self) -> Tokens:
        """Normed."""
        return replace(super().input(), norm=self.norm())

    def attention(self, layer: int) -> Attention:
        """Scores fall with distance."""
        return replace(super().attention(layer), position=Alibi(self.heads))

    def names(self) -> Names:
        """Rows of the fused projection are in groups of a head."""
        layer, ours = "transformer.h.{i}", "blocks.{i}"
        table = {
            "transformer.word_embeddings.weight": "input.table.weight",
            "transformer.word_embeddings_layernorm.{p}": "input.norm.{p}",
            f"{layer}.input_layernorm.{{p}}": f"{ours}.norms.mixer_norm.{{p}}",
            f"{layer}.self_attention.dense.{{p}}": f"{ours}.mixer.out.{{p}}",
            f"{layer}.post_attention_layernorm.{{p}}": f"{ours}.norms.mlp_norm.{{p}}",
            f"{layer}.mlp.dense_h_to_4h.{{p}}": f"{ours}.mlp.up.{{p}}",
            f"{layer}.mlp.dense_4h_to_h.{{p}}": f"{ours}.mlp.down.{{p}}",
            "transformer.ln_f.{p}": "norm.{p}",
            "lm_head.weight": "head.out.weight",
        }
        qkv = {f"{layer}.self_attention.query_key_value.{{p}}": f"{ours}.mixer.qkv.{{p}}"}
        share = self.heads // self.key_heads
        fused = rules(qkv, grouped_qkv(self.key_heads, share, self.head_size))
        return Names(rules(table) + fused, drop=(r"lm_head\.weight",), base="transformer.")

    @classmethod
    def tiny(cls) -> Self:
        """Two layers."""
        return cls(vocab=96, width=32, depth=2, heads=4, context=64)


family = Bloom
