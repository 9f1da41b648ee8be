"""T5 1.0, 1.1, Flan-T5, T0, mT5: pre-RMSNorm encoder and decoder, bucketed relative biases.

Source: Raffel et al. 2020, arXiv 1910.10683, section 2.1, and the released code: scores are not
scaled by 1/sqrt(d); 1.0 ties the head. 1.1: gated GELU, own head (Shazeer 2020, 2002.05202).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from keifu.checkpoints.names import Names
from keifu.core.errors import ConfigError
from keifu.families._family import Family
from keifu.families._fields import Fields
from keifu.families._learns import Learns
from keifu.families._t5 import FeedForward, TiedScaled, table
from keifu.nn.attention import Attention, CrossAttention
from keifu.nn.block import Block
from keifu.nn.heads import LMHead
from keifu.nn.inputs import Tokens
from keifu.nn.masks import Causal, Full
from keifu.nn.mlp import MLP, GatedMLP
from keifu.nn.norms import RMSNorm
from keifu.nn.pair import Pair
from keifu.nn.part import Part
from keifu.nn.positions import BucketBias, SharedBias
from keifu.nn.stack import Stack, repeat
from keifu.nn.wiring import Pre


@dataclass(frozen=True, kw_only=True)
class T5(Family):
    """Configuration; defaults are T5-base's."""

    vocab: int = 32128
    width: int = 768
    head_width: int = 64
    hidden: int = 3072
    depth: int = 12
    decoder_depth: int | None = None
    heads: int = 12
    buckets: int = 32
    distance: int = 128
    eps: float = 1e-6
    act: str = "relu"
    gated: bool = False
    tied: bool = True
    """The head is the shared table, its input scaled by 1/sqrt(width)."""
    context: int = 512
    unlimited: ClassVar[bool] = True
    taught = (("seq2seq", Learns(objective="span-corruption", start="pad")),)
    fields = Fields(
        architecture="T5ForConditionalGeneration",
        model_type="t5",
        keys={
            "vocab": "vocab_size", "width": "d_model", "head_width": "d_kv", "hidden": "d_ff",
            "depth": "num_layers", "decoder_depth": "num_decoder_layers", "heads": "num_heads",
            "buckets": "relative_attention_num_buckets", "context": "n_positions",
            "distance": "relative_attention_max_distance", "eps": "layer_norm_epsilon",
        },
        extra=(FeedForward(), TiedScaled()),
        fixed={"is_encoder_decoder": True},
        ignore=frozenset(("dropout_rate", "output_past")),
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "decoder_depth", self.decoder_depth or self.depth)
        super().__post_init__()

    def check(self) -> None:
        """A bucket for each near distance, and `distance` beyond those."""
        super().check()
        if self.buckets < 4 or self.buckets % 2 or self.distance <= self.buckets // 2:
            raise ConfigError(f"{self.buckets} buckets up to {self.distance}: no such bias")

    def stack(self, depth: int, *, decoder: bool) -> Stack:
        """One side: what was said so far or the whole source, then the memory, then the MLP."""
        norm = RMSNorm(width=self.width, eps=self.eps)
        size = {"width": self.width, "heads": self.heads, "head_width": self.head_width}
        mask = Causal() if decoder else Full()
        plain: dict[str, Any] = {**size, "scale": 1.0}
        mixer = Attention(**plain, kv_heads=self.heads, position=SharedBias(), mask=mask)
        cross = CrossAttention(**plain) if decoder else None
        kind = GatedMLP if self.gated else MLP
        mlp = kind(width=self.width, hidden=self.hidden, act=self.act, bias=False)
        block = Block(mixer=mixer, cross=cross, mlp=mlp, wiring=Pre(norm=norm))
        scale = self.width**-0.5 if self.tied else 1.0
        head = LMHead(width=self.width, vocab=self.vocab, tied=self.tied, scale=scale)
        bias = BucketBias(
            heads=self.heads, buckets=self.buckets, distance=self.distance,
            bidirectional=not decoder,
        )  # fmt: skip
        return Stack(
            input=Tokens(vocab=self.vocab, width=self.width),
            blocks=repeat(block, depth),
            norm=norm,
            head=head if decoder else None,
            shared=(("bias", bias),),
        )

    def spec(self) -> Part:
        """Both sides, one table."""
        decoder = self.stack(self.decoder_depth or self.depth, decoder=True)
        return Pair(encoder=self.stack(self.depth, decoder=False), decoder=decoder, tied=True)

    def names(self) -> Names:
        """The names of the Hugging Face port."""
        return table({"encoder": "encoder.", "decoder": "decoder."}, own_head=not self.tied)

    @classmethod
    def tiny(cls) -> Self:
        """1.1's options; heads that do not divide the width, sides of unequal depth."""
        return cls(
            vocab=96, width=32, head_width=6, hidden=48, depth=2, decoder_depth=3, heads=4,
            buckets=8, distance=12, act="gelu_tanh", gated=True, tied=False, context=64,
        )  # fmt: skip


family = T5
