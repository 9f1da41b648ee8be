"""MPT: GPT-2's block with ALiBi and no biases; clamped or normed queries, a prefix-LM mask.

Source: MosaicML 2023 (MPT-7B, llm-foundry). Differs from gpt_2.py in: positions, no biases (of
norms neither), published names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from keifu.checkpoints.names import Names, rules
from keifu.families._decoder import Decoder
from keifu.families._fields import Fields
from keifu.families._keys import Among, Nested
from keifu.nn.attention import Attention
from keifu.nn.masks import Causal, Prefix
from keifu.nn.norms import LayerNorm
from keifu.nn.positions import Alibi


@dataclass(frozen=True, kw_only=True)
class MPT(Decoder):
    """Configuration; defaults are MPT-7B's."""

    vocab: int = 50432
    width: int = 4096
    ratio: float = 4
    """The MLP's width over the stream's."""
    depth: int = 32
    heads: int = 32
    act: str = "gelu"
    bias: bool = False
    max_bias: int = 8
    """ALiBi's steepest exponent (StoryWriter: 16)."""
    clip: float | None = None
    qk_norm: bool = False
    scale: float | None = None
    prefix: bool = False
    """A row's prefix sees itself in both directions."""

    fields = Fields(
        architecture="MptForCausalLM",
        model_type="mpt",
        keys={
            "vocab": "vocab_size", "width": "d_model", "ratio": "expansion_ratio",
            "depth": "n_layers", "heads": "n_heads", "context": "max_seq_len",
            "eps": "layer_norm_epsilon", "tied": "tie_word_embeddings",
        },
        extra=(
            Nested(
                key="attn_config",
                keys={
                    "max_bias": "alibi_bias_max", "clip": "clip_qkv", "prefix": "prefix_lm",
                    "qk_norm": "qk_ln", "scale": "softmax_scale",
                },
                fixed={"alibi": True, "attn_type": "multihead_attention"},
                ignore=frozenset(("attn_impl", "attn_uses_sequence_id")),
            ),
            Among(key="norm_type", values=("low_precision_layernorm", "layernorm")),
        ),
        fixed={"no_bias": True, "logit_scale": None},
        ignore=frozenset(
            "learned_pos_emb embedding_fraction init_device init_config verbose "
            "tokenizer_name".split()
        ),
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", int(self.width * self.ratio))
        object.__setattr__(self, "clip", None if self.clip is None else float(self.clip))
        super().__post_init__()

    def norm(self) -> LayerNorm:
        """No bias."""
        return replace(super().norm(), bias=False)

    def attention(self, layer: int) -> Attention:
        """ALiBi in MPT's order of slopes."""
        own = self.norm() if self.qk_norm else None
        return replace(
            super().attention(layer),
            position=Alibi(self.heads, max_bias=self.max_bias, order="mpt"),
            mask=Causal() | Prefix() if self.prefix else Causal(),
            q_norm=own,
            k_norm=own,
            clip=self.clip,
            scale=self.scale,
        )

    def names(self) -> Names:
        """The names of the Hugging Face port and of the released code alike."""
        layer, ours = "transformer.blocks.{i}", "blocks.{i}"
        table = {
            "transformer.wte.weight": "input.table.weight",
            f"{layer}.norm_1.weight": f"{ours}.norms.mixer_norm.weight",
            f"{layer}.attn.Wqkv.weight": f"{ours}.mixer.qkv.weight",
            f"{layer}.attn.q_ln.weight": f"{ours}.mixer.q_norm.weight",
            f"{layer}.attn.k_ln.weight": f"{ours}.mixer.k_norm.weight",
            f"{layer}.attn.out_proj.weight": f"{ours}.mixer.out.weight",
            f"{layer}.norm_2.weight": f"{ours}.norms.mlp_norm.weight",
            f"{layer}.ffn.up_proj.weight": f"{ours}.mlp.up.weight",
            f"{layer}.ffn.down_proj.weight": f"{ours}.mlp.down.weight",
            "transformer.norm_f.weight": "norm.weight",
            "lm_head.weight": "head.out.weight",
        }
        return Names(rules(table), drop=(r"lm_head\.weight",), base="transformer.")

    @classmethod
    def tiny(cls) -> Self:
        """Every option of attention."""
        return cls(
            vocab=96, width=32, ratio=1.5, depth=2, heads=4, context=64, clip=4.0, qk_norm=True,
            prefix=True,
        )  # fmt: skip


family = MPT
