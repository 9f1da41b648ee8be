"""GPT-J: attention and MLP in parallel from one norm, rotary in neighbouring pairs.

Source: Wang & Komatsuzaki 2021 (mesh-transformer-jax) and its released weights. Differs from
gpt_2.py in: positions, wiring, biases of the MLP and the head alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from keifu.checkpoints.names import Names, rules
from keifu.families._decoder import Decoder
from keifu.families._fields import NEW_ACTS, Act
from keifu.families.gpt_2 import GPT2
from keifu.nn.attention import Attention
from keifu.nn.heads import LMHead
from keifu.nn.rotary import Rotary
from keifu.nn.wiring import Parallel, Wiring


@dataclass(frozen=True, kw_only=True)
class GPTJ(Decoder):
    """Configuration; defaults are GPT-J-6B's."""

    vocab: int = 50400
    width: int = 4096
    depth: int = 28
    heads: int = 16
    rotary: int = 64
    """Dimensions of each head that turn."""
    tied: bool = False

    fields = GPT2.fields.replaced(
        "GPTJForCausalLM",
        "gptj",
        keys={"rotary": "rotary_dim"},
        without=("scaled", "by_layer"),
        extra=(Act(key="activation_function", known=NEW_ACTS),),
        fixed={"scale_attn_weights": True, "rotary": True},
    )

    def attention(self, layer: int) -> Attention:
        """Rotary, no biases."""
        return replace(
            super().attention(layer),
            position=Rotary(self.rotary, layout="interleaved"),
            qkv_bias=False,
            out_bias=False,
        )

    def wiring(self) -> Wiring:
        """One norm for both branches."""
        return Parallel(norm=self.norm())

    def head(self) -> LMHead:
        """With a bias."""
        return replace(super().head(), bias=True)

    def names(self) -> Names:
        """The names of the Hugging Face port."""
        layer, ours = "transformer.h.{i}", "blocks.{i}"
        table = {
            "transformer.wte.weight": "input.table.weight",
            f"{layer}.ln_1.{{p}}": f"{ours}.norms.mixer_norm.{{p}}",
            f"{layer}.attn.{{q,k,v}}_proj.weight": f"{ours}.mixer.qkv.weight",
            f"{layer}.attn.out_proj.weight": f"{ours}.mixer.out.weight",
            f"{layer}.mlp.fc_in.{{p}}": f"{ours}.mlp.up.{{p}}",
            f"{layer}.mlp.fc_out.{{p}}": f"{ours}.mlp.down.{{p}}",
            "transformer.ln_f.{p}": "norm.{p}",
            "lm_head.{p}": "head.out.{p}",
            "lm_head.bias": "head.bias",
        }
        drop = (r".*attn\.(masked_)?bias", r".*attn\.embed_positions", r"lm_head\.weight")
        return Names(rules(table), drop=drop, base="transformer.")

    @classmethod
    def tiny(cls) -> Self:
        """Half of each head turns."""
        return cls(vocab=96, width=32, hidden=48, depth=2, heads=4, context=64, rotary=4)


family = GPTJ
