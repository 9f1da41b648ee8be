"""Switch Transformers: T5 whose every n-th MLP is a layer of experts, one a token.

Source: Fedus et al. 2021, arXiv 2101.03961, section 2. Differs from t5.py in: those layers. A row
gives an expert at most `capacity` tokens, as the published class has it; what is beyond passes by.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from keifu.checkpoints.names import Names, rules
from keifu.core.errors import ConfigError
from keifu.families._experts import LOSSES, FullSparse, experts_table
from keifu.families._fields import Act
from keifu.families._keys import Among
from keifu.families._t5 import TiedScaled
from keifu.families.t5 import T5
from keifu.nn.experts import Capacity, Experts
from keifu.nn.mlp import MLP
from keifu.nn.routers import Jitter, TopK
from keifu.nn.stack import Stack


@dataclass(frozen=True, kw_only=True)
class Switch(T5):
    """Configuration; defaults are Switch-base-8's."""

    experts: int = 8
    capacity: int = 64
    sparse: int = 6
    """Layers with experts in the encoder."""
    decoder_sparse: int = 6
    router_bias: bool = False

    fields = T5.fields.replaced(
        "SwitchTransformersForConditionalGeneration",
        "switch_transformers",
        keys={
            "experts": "num_experts", "capacity": "expert_capacity", "router_bias": "router_bias",
            "sparse": "num_sparse_encoder_layers", "decoder_sparse": "num_sparse_decoder_layers",
        },
        without=("gated",),
        extra=(
            Act(key="dense_act_fn"),
            TiedScaled(),
            FullSparse(),
            Among(key="router_dtype", values=("float32", "bfloat16", "float16")),
        ),
        fixed={"is_encoder_decoder": True, "is_gated_act": False},
        ignore=LOSSES | T5.fields.ignore | {
            "encoder_sparse_step", "decoder_sparse_step", "router_ignore_padding_tokens",
            "feed_forward_proj",
        },
    )  # fmt: skip

    def check(self) -> None:
        """The experts must fit, and some layers have them."""
        super().check()
        sides = ((self.sparse, self.depth), (self.decoder_sparse, self.decoder_depth))
        for sparse, depth in sides:
            if depth and not 1 <= sparse <= depth:
                raise ConfigError(f"{sparse} sparse layers of {depth}: 1 to {depth} are allowed")
        self.mixture()

    def mixture(self) -> Experts:
        """The channel mixer of sparse layers."""
        return Experts(
            count=self.experts,
            expert=MLP(width=self.width, hidden=self.hidden, act=self.act, bias=False),
            router=TopK(noise=Jitter(share=0.01), bias=self.router_bias),
            capacity=Capacity(tokens=self.capacity),
        )

    def stack(self, depth: int, *, decoder: bool) -> Stack:
        """T5's: the second layer of every `step` has experts."""
        made = super().stack(depth, decoder=decoder)
        step = depth // (self.decoder_sparse if decoder else self.sparse)
        mixed = (
            replace(block, mlp=self.mixture()) if step == 1 or i % step == 1 else block
            for i, block in enumerate(made.blocks)
        )
        return replace(made, blocks=tuple(mixed))

    def names(self) -> Names:
        """T5's with other names in the channel mixer."""
        table: dict[str, str] = {}
        for side, at in (("encoder", 1), ("decoder", 2)):
            mlp, ours = f"{side}.block.{{i}}.layer.{at}.mlp.", f"{side}.blocks.{{i}}.mlp."
            each = mlp + "experts.expert_{e}."
            table |= {
                f"{mlp}wi.weight": f"{ours}up.weight",
                f"{mlp}wo.weight": f"{ours}down.weight",
                f"{mlp}router.classifier.{{p}}": f"{ours}router.{{p}}",
            }
            table |= experts_table(each, ours, self.experts, up="wi", down="wo")
        older = {"decoder.lm_head.weight": "lm_head.weight"}
        return replace(super().names().replaced(rules(table)), older=older)

    @classmethod
    def tiny(cls) -> Self:
        """Sides of unequal depth, an expert that overflows."""
        return cls(
            vocab=96, width=32, head_width=6, hidden=24, depth=2, decoder_depth=3, heads=4,
            buckets=8, distance=12, context=64, experts=3, capacity=3, sparse=1, decoder_sparse=3,
        )  # fmt: skip


family = Switch
