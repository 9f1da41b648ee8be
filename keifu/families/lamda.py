"""LaMDA: a decoder of T5's parts: bucketed relative positions, gated GELU, RMSNorm, no biases.

Source: Thoppilan et al. 2022, arXiv 2201.08239, section 3 (sizes, relative attention as in T5,
gated GELU); what it leaves open (norms, no scale on scores, the separate head) is T5 1.1's. The
weights are closed, so config.json and weight names are those of T5's decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from keifu.checkpoints.names import Names, rules
from keifu.families._family import Family
from keifu.families._fields import Fields
from keifu.nn.attention import Attention
from keifu.nn.block import Block
from keifu.nn.heads import LMHead
from keifu.nn.inputs import Tokens
from keifu.nn.mlp import GatedMLP
from keifu.nn.norms import RMSNorm
from keifu.nn.positions import BucketBias, SharedBias
from keifu.nn.stack import Stack, repeat
from keifu.nn.wiring import Pre


@dataclass(frozen=True, kw_only=True)
class LaMDA(Family):
    """Configuration; defaults are the 137B model's."""

    vocab: int = 32000
    width: int = 8192
    hidden: int = 65536
    depth: int = 64
    heads: int = 128
    head_width: int = 128
    eps: float = 1e-6
    tied: bool = False
    buckets: int = 32
    distance: int = 128

    fields = Fields(
        architecture="LaMDAForCausalLM",
        model_type="lamda",
        keys={
            "vocab": "vocab_size",
            "width": "d_model",
            "hidden": "d_ff",
            "depth": "num_layers",
            "heads": "num_heads",
            "head_width": "d_kv",
            "context": "n_positions",
            "eps": "layer_norm_epsilon",
            "tied": "tie_word_embeddings",
            "buckets": "relative_attention_num_buckets",
            "distance": "relative_attention_max_distance",
        },
        fixed={"feed_forward_proj": "gated-gelu"},
    )

    def spec(self) -> Stack:
        """One table of biases for all layers; scores are not scaled."""
        norm = RMSNorm(width=self.width, eps=self.eps)
        mixer = Attention(
            width=self.width,
            heads=self.heads,
            kv_heads=self.heads,
            head_width=self.head_width,
            position=SharedBias(),
            scale=1.0,
        )
        mlp = GatedMLP(width=self.width, hidden=self.hidden, act="gelu_tanh")
        bias = BucketBias(heads=self.heads, buckets=self.buckets, distance=self.distance)
        return Stack(
            input=Tokens(vocab=self.vocab, width=self.width),
            blocks=repeat(Block(mixer=mixer, wiring=Pre(norm=norm), mlp=mlp), self.depth),
            norm=norm,
            head=LMHead(width=self.width, vocab=self.vocab, tied=self.tied),
            shared=(("bias", bias),),
        )

    def names(self) -> Names:
        """Those of T5, whose layers have two parts where there is no encoder."""
        layer, ours = "decoder.block.{i}.layer", "blocks.{i}"
        attention = f"{layer}.0.SelfAttention"
        table = {
            "shared.weight": "input.table.weight",
            "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (
                "shared.bias.table"
            ),
            f"{layer}.0.layer_norm.weight": f"{ours}.norms.mixer_norm.weight",
            f"{attention}.{{q,k,v}}.weight": f"{ours}.mixer.qkv.weight",
            f"{attention}.o.weight": f"{ours}.mixer.out.weight",
            f"{layer}.1.layer_norm.weight": f"{ours}.norms.mlp_norm.weight",
            f"{layer}.1.DenseReluDense.{{gate=wi_0,up=wi_1}}.weight": f"{ours}.mlp.gate_up.weight",
            f"{layer}.1.DenseReluDense.wo.weight": f"{ours}.mlp.down.weight",
            "decoder.final_layer_norm.weight": "norm.weight",
            "lm_head.weight": "head.out.weight",
        }
        return Names(rules(table), drop=(r"decoder\.embed_tokens\.weight", r"lm_head\.weight"))

    @classmethod
    def tiny(cls) -> Self:
        """Buckets that fill within the tests' sequences."""
        return cls(
            vocab=96, width=32, hidden=48, depth=2, heads=4, head_width=8, context=64, buckets=8,
            distance=12,
        )  # fmt: skip


family = LaMDA
