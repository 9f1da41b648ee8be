"""ERNIE 1 and 2 (Baidu): BERT that learns from masked phrases and entities; 2.0 is told the task.

Source: Sun et al. 2019, arXiv 1904.09223, section 3; 2.0: arXiv 1907.12412, section 4. Differs
from bert.py in: the task's vector in the input (`task_kinds`), names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from keifu.checkpoints.names import Names
from keifu.families._encoder import FIELDS, Encoder
from keifu.families._learns import Learns
from keifu.nn.inputs import Tokens

ENTITIES = Learns(objective="masked-lm", options={"unit": "entity"})


@dataclass(frozen=True, kw_only=True)
class Ernie(Encoder):
    """Configuration; defaults are ernie-1.0's but for the vocabulary."""

    task_kinds: int = 3
    """Tasks that the input can name, where `told`."""
    told: bool = False
    """The input has a vector for the task of each token (`kinds={"task": ids}`), 0 if not given."""

    taught = (("next-sentence", ENTITIES), ("masked-lm", ENTITIES))
    fields = FIELDS.replaced(
        "ErnieModel",
        "ernie",
        keys={"task_kinds": "task_type_vocab_size", "told": "use_task_id"},
    )

    def input(self) -> Tokens:
        """With the task's vector where it is told."""
        kinds = (("task", self.task_kinds),) if self.told else ()
        return replace(super().input(), kinds=kinds)

    def names(self) -> Names:
        """BERT's under another prefix."""
        task = {"ernie.embeddings.task_type_embeddings.weight": "input.kinds.task.weight"}
        dense, norm = "transform.dense", "transform.LayerNorm"
        return self.named(
            "ernie.",
            self.layer_names("ernie.") | (task if self.told else {}),
            lm=self.lm_names("cls.predictions", dense=dense, norm=norm),
            pool="ernie.pooler.dense",
        )

    @classmethod
    def tiny(cls) -> Self:
        """Two layers, told the task, the heads of pre-training."""
        return cls(
            vocab=96, width=32, hidden=48, depth=2, heads=4, context=40, told=True, task="pretrain"
        )


family = Ernie
