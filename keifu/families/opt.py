"""OPT: GPT-3's sizes with ReLU; the 350M model has norms after the branches and a narrower table.

Source: Zhang et al. 2022, arXiv 2205.01068, and the released code. Differs from gpt_2.py in: ReLU,
positions that begin at row 2 of their table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from keifu.checkpoints.names import Names, rules
from keifu.families._decoder import Decoder
from keifu.families._fields import Act, Fields
from keifu.families._keys import Contrary
from keifu.nn.heads import LMHead
from keifu.nn.inputs import Tokens
from keifu.nn.norms import LayerNorm
from keifu.nn.positions import Learned
from keifu.nn.stack import Stack
from keifu.nn.wiring import Post, Pre, Wiring


@dataclass(frozen=True, kw_only=True)
class OPT(Decoder):
    """Configuration; defaults are OPT-125M's."""

    vocab: int = 50272
    act: str = "relu"
    pre: bool = True
    """Norms before the branches, not after."""
    last_norm: bool = True
    table_width: int | None = None
    affine: bool = True

    fields = Fields(
        architecture="OPTForCausalLM",
        model_type="opt",
        keys={
            "vocab": "vocab_size",
            "width": "hidden_size",
            "hidden": "ffn_dim",
            "depth": "num_hidden_layers",
            "heads": "num_attention_heads",
            "context": "max_position_embeddings",
            "tied": "tie_word_embeddings",
            "pre": "do_layer_norm_before",
            "table_width": "word_embed_proj_dim",
            "bias": "enable_bias",
            "affine": "layer_norm_elementwise_affine",
        },
        extra=(
            Act(key="activation_function"),
            Contrary(key="_remove_final_layer_norm", ours="last_norm"),
        ),
        ignore=frozenset(("init_std",)),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "table_width", self.table_width or self.width)
        super().__post_init__()

    def norm(self) -> LayerNorm:
        """With weights or without."""
        return replace(super().norm(), affine=self.affine)

    def input(self) -> Tokens:
        """Learned positions, added after the projection where there is one."""
        positions = Learned(length=self.context, width=self.width, offset=2)
        return replace(super().input(), positions=positions, table_width=self.table_width)

    def wiring(self) -> Wiring:
        """Before, or after in the 350M model."""
        return Pre(norm=self.norm()) if self.pre else Post(norm=self.norm())

    def head(self) -> LMHead:
        """Down to the table's width first."""
        return replace(super().head(), table_width=self.table_width)

    def spec(self) -> Stack:
        """A last norm where norms come before."""
        last = self.norm() if self.pre and self.last_norm else None
        return replace(super().spec(), norm=last)

    def names(self) -> Names:
        """The names of the Hugging Face port."""
        layer, ours = "model.decoder.layers.{i}", "blocks.{i}"
        table = {
            "model.decoder.embed_tokens.weight": "input.table.weight",
            "model.decoder.embed_positions.weight": "input.positions.weight",
            "model.decoder.project_in.weight": "input.project.weight",
            f"{layer}.self_attn_layer_norm.{{p}}": f"{ours}.norms.mixer_norm.{{p}}",
            f"{layer}.self_attn.{{q,k,v}}_proj.{{p}}": f"{ours}.mixer.qkv.{{p}}",
            f"{layer}.self_attn.out_proj.{{p}}": f"{ours}.mixer.out.{{p}}",
            f"{layer}.final_layer_norm.{{p}}": f"{ours}.norms.mlp_norm.{{p}}",
            f"{layer}.fc1.{{p}}": f"{ours}.mlp.up.{{p}}",
            f"{layer}.fc2.{{p}}": f"{ours}.mlp.down.{{p}}",
            "model.decoder.final_layer_norm.{p}": "norm.{p}",
            "model.decoder.project_out.weight": "head.project.weight",
            "lm_head.weight": "head.out.weight",
        }
        return Names(rules(table), drop=(r"lm_head\.weight",), base="model.")

    @classmethod
    def tiny(cls) -> Self:
        """The 350M model's options."""
        return cls(
            vocab=96, width=32, hidden=48, depth=2, heads=4, context=64, pre=False, table_width=16
        )


family = OPT
