"""ALBERT: BERT with one layer's weights at every depth and a narrow token table.

Source: Lan et al. 2020, arXiv 1909.11942, section 3, and the released code. Differs from bert.py
in: `uses` (sharing across layers, in `groups` of `inner` layers), table width, names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from keifu.checkpoints.names import Names
from keifu.core.errors import ConfigError
from keifu.families._encoder import FIELDS, OUTS, Encoder
from keifu.families._learns import Learns
from keifu.nn.inputs import Tokens
from keifu.nn.norms import LayerNorm
from keifu.nn.positions import Learned
from keifu.nn.stack import Stack, repeat
from keifu.nn.task_heads import MaskedLM

PARTS = {
    "attention.{q=query,k=key,v=value}": "mixer.qkv",
    "attention.dense": "mixer.out",
    "attention.LayerNorm": "norms.mixer_norm",
    "ffn": "mlp.up",
    "ffn_output": "mlp.down",
    "full_layer_layer_norm": "norms.mlp_norm",
}
"""Names inside a layer <-> ours."""


@dataclass(frozen=True, kw_only=True)
class Albert(Encoder):
    """Configuration; defaults are albert-xxlarge's."""

    vocab: int = 30000
    table_width: int = 128
    width: int = 4096
    hidden: int = 16384
    heads: int = 64
    act: str = "gelu_tanh"
    groups: int = 1
    """Depths in one group share their layers."""
    inner: int = 1
    """Layers of a group, which run one after another at each of its depths."""
    dropout: float = 0.0
    attention_dropout: float = 0.0
    head_dropout: float | None = 0.1

    taught = (("next-sentence", Learns(objective="sentence-order")),)
    fields = FIELDS.replaced(
        "AlbertModel",
        "albert",
        keys={
            "table_width": "embedding_size",
            "groups": "num_hidden_groups",
            "inner": "inner_group_num",
            "head_dropout": "classifier_dropout_prob",
        },
        tasks=("encode", "pretrain", "fill-mask", "classify", "tag", "answer", "choose"),
        ignore=frozenset("net_structure_type num_memory_blocks gap_size down_scale_factor".split()),
    )

    def check(self) -> None:
        """A group needs a depth."""
        super().check()
        if not 1 <= self.groups <= self.depth or self.inner < 1:
            said = f"{self.groups} groups of {self.inner} layers"
            raise ConfigError(f"{said} do not fit a depth of {self.depth}")

    def input(self) -> Tokens:
        """A narrow table, normalised, and a projection up."""
        narrow = self.table_width
        norm = LayerNorm(width=narrow, eps=self.eps)
        table = Learned(length=self.context, width=narrow)
        shared = replace(super().input(), table_width=narrow, project_bias=True)
        return replace(shared, positions=table, norm=norm)

    def masked_lm(self) -> MaskedLM:
        """Down to the table's width."""
        norm = LayerNorm(width=self.table_width, eps=self.eps)
        return replace(super().masked_lm(), norm=norm, table_width=self.table_width)

    def spec(self) -> Stack:
        """At each depth its group's layers."""
        group = [depth * self.groups // self.depth for depth in range(self.depth)]
        uses = tuple(g * self.inner + layer for g in group for layer in range(self.inner))
        blocks = repeat(self.block(), self.groups * self.inner)
        return replace(super().spec(), blocks=blocks, uses=uses)

    def names(self) -> Names:
        """A layer's name has its group's number and its own; the pooler is one matrix."""
        bert = self.layer_names("albert.").items()
        layers = {theirs: ours for theirs, ours in bert if not ours.startswith("blocks.")}
        layers["albert.encoder.embedding_hidden_mapping_in.{p}"] = "input.project.{p}"
        for block in range(self.groups * self.inner):
            group, layer = divmod(block, self.inner)
            where = f"albert.encoder.albert_layer_groups.{group}.albert_layers.{layer}"
            for theirs, ours in PARTS.items():
                layers[f"{where}.{theirs}.{{p}}"] = f"blocks.{block}.{ours}.{{p}}"
        return self.named(
            "albert.",
            layers,
            lm=self.lm_names("predictions", dense="dense", norm="LayerNorm"),
            pool="albert.pooler",
            outs={**OUTS, "next": "sop_classifier.classifier"},
        )

    @classmethod
    def tiny(cls) -> Self:
        """Three depths in two groups of two layers, the heads of pre-training."""
        return cls(
            vocab=96, table_width=16, width=32, hidden=48, depth=3, heads=4, context=40, groups=2,
            inner=2, task="pretrain",
        )  # fmt: skip


family = Albert
