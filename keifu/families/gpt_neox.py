"""GPT-NeoX and Pythia: parallel branches with a norm each, part of each head turns, separate head.

Source: Black et al. 2022, arXiv 2204.06745; Biderman et al. 2023, arXiv 2304.01373. Differs from
gpt_j.py in: wiring, rotary in halves, biases; queries, keys and values are published head by head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from keifu.checkpoints.names import Names, grouped_qkv, rules
from keifu.families._decoder import Decoder
from keifu.families._fields import Act, Fields, Rope
from keifu.nn.attention import Attention
from keifu.nn.rotary import Rotary, Scaling, Unscaled
from keifu.nn.wiring import ParallelNorms, Pre, Wiring


@dataclass(frozen=True, kw_only=True)
class GPTNeoX(Decoder):
    """Configuration; defaults are GPT-NeoX-20B's."""

    vocab: int = 50432
    width: int = 6144
    depth: int = 44
    heads: int = 64
    act: str = "gelu"
    tied: bool = False
    attention_bias: bool = True
    parallel: bool = True
    rotary: float = 0.25
    """Share of each head that turns."""
    rope_base: float = 10000.0
    scaling: Scaling = Unscaled()

    fields = Fields(
        architecture="GPTNeoXForCausalLM",
        model_type="gpt_neox",
        keys={
            "vocab": "vocab_size",
            "width": "hidden_size",
            "hidden": "intermediate_size",
            "depth": "num_hidden_layers",
            "heads": "num_attention_heads",
            "context": "max_position_embeddings",
            "eps": "layer_norm_eps",
            "tied": "tie_word_embeddings",
            "attention_bias": "attention_bias",
            "parallel": "use_parallel_residual",
        },
        extra=(Act(), Rope(fraction="rotary")),
        aliases={"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"},
    )

    def attention(self, layer: int) -> Attention:
        """Part of each head turns."""
        turned = int(self.head_size * self.rotary)
        return replace(
            super().attention(layer),
            position=Rotary(turned, base=self.rope_base, scaling=self.scaling),
            qkv_bias=self.attention_bias,
            out_bias=self.attention_bias,
        )

    def wiring(self) -> Wiring:
        """In parallel, or one after the other."""
        norm = self.norm()
        return ParallelNorms(norm=norm) if self.parallel else Pre(norm=norm)

    def names(self) -> Names:
        """Rows of the fused projection are in groups of a head."""
        layer, ours = "gpt_neox.layers.{i}", "blocks.{i}"
        table = {
            "gpt_neox.embed_in.weight": "input.table.weight",
            f"{layer}.input_layernorm.{{p}}": f"{ours}.norms.mixer_norm.{{p}}",
            f"{layer}.attention.dense.{{p}}": f"{ours}.mixer.out.{{p}}",
            f"{layer}.post_attention_layernorm.{{p}}": f"{ours}.norms.mlp_norm.{{p}}",
            f"{layer}.mlp.dense_h_to_4h.{{p}}": f"{ours}.mlp.up.{{p}}",
            f"{layer}.mlp.dense_4h_to_h.{{p}}": f"{ours}.mlp.down.{{p}}",
            "gpt_neox.final_layer_norm.{p}": "norm.{p}",
            "embed_out.weight": "head.out.weight",
        }
        qkv = {f"{layer}.attention.query_key_value.{{p}}": f"{ours}.mixer.qkv.{{p}}"}
        fused = rules(qkv, grouped_qkv(self.heads, 1, self.head_size))
        drop = (r".*attention\.(masked_)?bias", r".*rotary_emb\.inv_freq", r"embed_out\.weight")
        return Names(rules(table) + fused, drop=drop, base="gpt_neox.")

    @classmethod
    def tiny(cls) -> Self:
        """Half of each head turns."""
        return cls(vocab=96, width=32, hidden=48, depth=2, heads=4, context=64, rotary=0.5)


family = GPTNeoX
