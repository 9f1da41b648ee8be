"""Falcon: parallel branches; one key head and one norm (7B) or groups and two norms (40B, 180B).

Source: Almazrouei et al. 2023, arXiv 2311.16867, and the released code (Falcon-RW: ALiBi, biases,
in sequence). Differs from bloom.py in: positions, wiring, shared keys, no biases.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from keifu.checkpoints.names import Names, rules
from keifu.core.errors import ConfigError
from keifu.families._fields import Act, Rope
from keifu.families.bloom import Bloom
from keifu.nn.attention import Attention
from keifu.nn.inputs import Tokens
from keifu.nn.positions import CoarseAlibi, Position
from keifu.nn.rotary import Rotary, Scaling, Unscaled
from keifu.nn.wiring import Parallel, ParallelNorms, Pre, Wiring


@dataclass(frozen=True, kw_only=True)
class Falcon(Bloom):
    """Configuration; defaults are Falcon-7B's."""

    vocab: int = 65024
    width: int = 4544
    depth: int = 32
    heads: int = 71
    act: str = "gelu"
    groups: int | None = None
    """Key heads of the new decoder."""
    multi_query: bool = True
    """The old decoder has one key head, or one a head."""
    new: bool = False
    """The decoder of 40B, 180B and 11B."""
    norms: int | None = None
    """Of the new decoder's layer: 2, or 1 (11B)."""
    parallel: bool = True
    bias: bool = False
    alibi: bool = False
    rope_base: float = 10000.0
    scaling: Scaling = Unscaled()

    fields = Bloom.fields.replaced(
        "FalconForCausalLM",
        "falcon",
        keys={
            "hidden": "ffn_hidden_size",
            "depth": "num_hidden_layers",
            "heads": "num_attention_heads",
            "groups": "num_kv_heads",
            "context": "max_position_embeddings",
            "multi_query": "multi_query",
            "new": "new_decoder_architecture",
            "norms": "num_ln_in_parallel_attn",
            "parallel": "parallel_attn",
            "bias": "bias",
            "alibi": "alibi",
        },
        extra=(Act(key="activation"), Rope()),
        fixed={"apply_residual_connection_post_layernorm": False},
        aliases={
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_head_kv": "num_kv_heads",
        },
    )

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        if self.new:
            return self.groups or self.heads
        return 1 if self.multi_query else self.heads

    def check(self) -> None:
        """Options of one decoder with the other have no published meaning."""
        super().check()
        if self.new and (not self.parallel or self.norms not in (None, 1, 2)):
            raise ConfigError("new_decoder_architecture needs parallel_attn and 1 or 2 norms")

    def input(self) -> Tokens:
        """No norm."""
        return replace(super().input(), norm=None)

    def attention(self, layer: int) -> Attention:
        """Shared keys, rotary or ALiBi."""
        size = self.head_size
        position: Position = Rotary(size, base=self.rope_base, scaling=self.scaling)
        if self.alibi:
            position = CoarseAlibi(self.heads, size**-0.5)
        return replace(super().attention(layer), position=position)

    def wiring(self) -> Wiring:
        """As the decoder says."""
        norm = self.norm()
        if not self.parallel:
            return Pre(norm=norm)
        return ParallelNorms(norm=norm) if self.new and self.norms != 1 else Parallel(norm=norm)

    def names(self) -> Names:
        """BLOOM's; two norms of one layer have names of their own."""
        named = replace(super().names(), drop=(r".*rotary_emb\.inv_freq", r"lm_head\.weight"))
        table = {
            "transformer.h.{i}.ln_attn.{p}": "blocks.{i}.norms.mixer_norm.{p}",
            "transformer.h.{i}.ln_mlp.{p}": "blocks.{i}.norms.mlp_norm.{p}",
        }
        return named.replaced(rules(table) if isinstance(self.wiring(), ParallelNorms) else ())

    @classmethod
    def tiny(cls) -> Self:
        """The new decoder with two groups."""
        return cls(vocab=96, width=32, hidden=48, depth=2, heads=4, context=64, new=True, groups=2)


family = Falcon
