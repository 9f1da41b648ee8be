"""GPT-1: the Transformer's decoder of 2017 with norms after the branches, learned positions.

Source: Radford et al. 2018, Improving Language Understanding by Generative Pre-Training, section
3.1 and 4.1, and the released code. Differs from gpt_2.py in: wiring, no last norm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from keifu.checkpoints.names import Names, rules
from keifu.families._fields import Act
from keifu.families._keys import SecondHead
from keifu.families.gpt_2 import GPT2
from keifu.nn.stack import Stack
from keifu.nn.wiring import Post, Wiring

ACTS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
"""The released code calls the approximation "gelu"."""


@dataclass(frozen=True, kw_only=True)
class GPT1(GPT2):
    """Configuration; defaults are the published model's."""

    vocab: int = 40478
    context: int = 512

    fields = GPT2.fields.replaced(
        "OpenAIGPTLMHeadModel",
        "openai-gpt",
        without=("hidden", "scaled", "by_layer"),
        extra=(
            Act(key="afn", known=ACTS),
            SecondHead(plain="OpenAIGPTLMHeadModel", double="OpenAIGPTDoubleHeadsModel"),
        ),
    )

    def wiring(self) -> Wiring:
        """Norms after the sums."""
        return Post(norm=self.norm())

    def spec(self) -> Stack:
        """The last block's norm is the last."""
        return replace(super().spec(), norm=None)

    def names(self) -> Names:
        """GPT-2's but for the tables."""
        table = {
            "transformer.tokens_embed.weight": "input.table.weight",
            "transformer.positions_embed.weight": "input.positions.weight",
        }
        return super().names().replaced(rules(table))

    @classmethod
    def tiny(cls) -> Self:
        """Two layers and the second head."""
        return cls(vocab=96, width=32, depth=2, heads=4, context=64, choice=True)


family = GPT1
