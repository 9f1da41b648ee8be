"""What GPT-2 and its successors share: LayerNorm, a plain MLP, biases, one block a layer."""

from __future__ import annotations

from dataclasses import dataclass

from keifu.core.errors import ConfigError
from keifu.families._family import Family
from keifu.nn.attention import Attention
from keifu.nn.block import Block
from keifu.nn.heads import LMHead
from keifu.nn.inputs import Tokens
from keifu.nn.mlp import MLP
from keifu.nn.norms import LayerNorm
from keifu.nn.stack import Stack
from keifu.nn.wiring import Pre, Wiring


@dataclass(frozen=True, kw_only=True)
class Decoder(Family):
    """A decoder by its parts; a family replaces those in which it differs."""

    vocab: int = 50257
    width: int = 768
    hidden: int | None = None
    """Of the MLP; None is 4 * width."""
    depth: int = 12
    heads: int = 12
    eps: float = 1e-5
    act: str = "gelu_tanh"
    tied: bool = True
    bias: bool = True
    """On all projections."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", self.hidden or 4 * self.width)
        super().__post_init__()

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.heads

    def check(self) -> None:
        """Key heads must serve equally many heads."""
        super().check()
        if self.heads % self.key_heads:
            raise ConfigError(f"{self.heads} heads cannot share {self.key_heads} key heads evenly")

    def norm(self) -> LayerNorm:
        """The one norm."""
        return LayerNorm(width=self.width, eps=self.eps)

    def input(self) -> Tokens:
        """Token vectors."""
        return Tokens(vocab=self.vocab, width=self.width)

    def attention(self, layer: int) -> Attention:
        """The token mixer of a layer."""
        return Attention(
            width=self.width,
            heads=self.heads,
            kv_heads=self.key_heads,
            head_width=self.head_size,
            qkv_bias=self.bias,
            out_bias=self.bias,
        )

    def mlp(self) -> MLP:
        """The channel mixer."""
        assert self.hidden
        return MLP(width=self.width, hidden=self.hidden, act=self.act, bias=self.bias)

    def wiring(self) -> Wiring:
        """Norms before the branches."""
        return Pre(norm=self.norm())

    def block(self, layer: int) -> Block:
        """One layer."""
        return Block(mixer=self.attention(layer), wiring=self.wiring(), mlp=self.mlp())

    def head(self) -> LMHead:
        """Next-token logits."""
        return LMHead(width=self.width, vocab=self.vocab, tied=self.tied)

    def spec(self) -> Stack:
        """Embed, `depth` blocks, norm, head."""
        return Stack(
            input=self.input(),
            blocks=tuple(map(self.block, range(self.depth))),
            norm=self.norm(),
            head=self.head(),
        )
