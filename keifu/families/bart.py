"""BART: a BERT-like encoder and a GPT-like decoder, trained to restore noised text.

Source: Lewis et al. 2020, arXiv 1910.13461, section 2, and the released code. Norms after the sums
and one after the input, GELU, learned positions that begin at row 2 of their table. The five noises
are in keifu.data.noising. A classifier reads a row twice, encoder and decoder, and judges it by the
decoder's last token (section 3.1): the tap "head.classify".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from keifu.checkpoints.names import Names, rules
from keifu.families._classes import Labels, read_labels, write_labels
from keifu.families._learns import Learns
from keifu.families._seq2seq import Seq2Seq, fields
from keifu.nn.stack import Stack
from keifu.nn.task_heads import Pooled, RowScores

THREE = Labels(names=("LABEL_0", "LABEL_1", "LABEL_2"))
"""What a classifier judges where its config does not say (entailment)."""


@dataclass(frozen=True, kw_only=True)
class PairClass:
    """A class that generates or one that classifies <-> `task` and `labels`."""

    prefix: str

    def names(self) -> frozenset[str]:
        """What says it."""
        return frozenset(("architectures",))

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Labels count for a classifier alone."""
        if f"{self.prefix}ForSequenceClassification" not in (config.get("architectures") or ()):
            return {}
        return {"task": "classify", "labels": read_labels(config) or THREE}

    def write(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The class, a classifier's labels."""
        if values["task"] == "generate":
            return {"architectures": [f"{self.prefix}ForConditionalGeneration"]}
        name = f"{self.prefix}ForSequenceClassification"
        return {"architectures": [name], **write_labels(values["labels"])}


@dataclass(frozen=True, kw_only=True)
class BART(Seq2Seq):
    """Configuration; defaults are BART-large's."""

    task: str = "generate"
    """Or "classify"."""
    labels: Labels = field(default_factory=lambda: THREE)

    taught = (("seq2seq", Learns(objective="denoising", start="eos")),)
    fields = fields(
        "BartForConditionalGeneration",
        "bart",
        {},
        extra=(PairClass(prefix="Bart"),),
        tie_word_embeddings=True,
        normalize_before=False,
        normalize_embedding=True,
        add_final_layer_norm=False,
        static_position_embeddings=False,
    )

    def decoder(self) -> Stack:
        """With the head of its task."""
        stack = super().decoder()
        if self.task == "generate":
            return stack
        pool = Pooled(width=self.width, act="tanh", at=-1)
        scores = RowScores(pool=pool, count=len(self.labels.names))
        return replace(stack, head=None, heads=(("classify", scores),))

    def names(self) -> Names:
        """With the head of its task."""
        head, ours = "classification_head", "decoder.heads.classify"
        table = {f"{head}.dense.{{p}}": f"{ours}.pool.dense.{{p}}"}
        table[f"{head}.out_proj.{{p}}"] = f"{ours}.out.{{p}}"
        return super().names().replaced(rules(table))

    @classmethod
    def tiny(cls) -> Self:
        """Sides of different depth, heads and hidden width."""
        return cls(
            vocab=96, width=32, encoder_depth=2, encoder_heads=4, encoder_hidden=48,
            decoder_depth=3, decoder_heads=2, decoder_hidden=40, scaled=True, context=64,
        )  # fmt: skip


family = BART
