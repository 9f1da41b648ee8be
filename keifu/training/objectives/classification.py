"""Classification of whole rows or of every token, by the model's head or a named second one.

Source: Radford et al. 2018, section 3.2 (rows); Devlin et al. 2019, section 4 (rows and tokens).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from keifu.core.errors import KeifuError, unknown
from keifu.data.vocabulary import Vocabulary
from keifu.nn.losses import IGNORE
from keifu.training.batch import Sequences
from keifu.training.objective import Loss, Objective, stack_of, token_loss
from keifu.training.reading import Drawn, Reader, merged

READ = ("last", "first", "every")


@dataclass(frozen=True, kw_only=True)
class Classification(Objective[Sequences]):
    """Cross-entropy of a row's or a token's class; items are what has a label."""

    head: str | None = None
    """Which of the model's further heads gives the scores (default: its own head)"""
    read: Literal["last", "first", "every"] = "last"
    """Where scores are read: a row's last or first token (heads that judge rows see to that
    themselves), or every token"""
    smoothing: float = 0.0
    """Label smoothing"""

    def __post_init__(self) -> None:
        if self.read not in READ:
            raise unknown("place to read", self.read, READ)

    def __call__(self, model: nn.Module, batch: Sequences) -> Loss:
        """The loss of a batch."""
        at, labels = self._places(batch)
        return token_loss(self.scores(model, batch, at), labels, self.smoothing)

    def reader(self, vocabulary: Vocabulary) -> Reader[Sequences]:
        """A text between its marks and its label; of tokens, a target of one label a token."""
        return lambda examples: merged(self._row(one, vocabulary) for one in examples)

    def _row(self, drawn: Drawn, vocabulary: Vocabulary) -> tuple[Sequences, bool]:
        example, ids = drawn.example, drawn.example.ids.tolist()
        row = vocabulary.marked(ids) or [0]
        if self.read == "every":
            if example.target is None or len(example.target) != len(ids):
                raise KeifuError("classes of tokens need a target of one label a token")
            labels = [IGNORE] * len(row)
            first = len(vocabulary.prefix)
            most = len(row) - first - len(vocabulary.suffix)
            labels[first : first + most] = example.target.tolist()[:most]
            return Sequences.of([row], [labels]), any(n != IGNORE for n in labels)
        label = IGNORE if example.label is None else example.label
        return Sequences.of([row], [label]), label != IGNORE

    def scores(self, model: nn.Module, batch: Sequences, at: Tensor | None = None) -> Tensor:
        """Scores (items, classes) at some places, by default where rows or tokens are read."""
        stack = stack_of(model, "classification")
        if at is None and self.read != "every":
            at = self._ends(batch)
        if self.head is None:
            logits = stack.run(batch.ids, batch.step(), select=at).logits
            if logits is None:
                raise KeifuError("classification needs a model with a head")
            return logits
        if self.head not in stack.heads:
            raise unknown("head", self.head, stack.heads)
        tap, lasts = f"head.{self.head}", batch.lasts()
        found = stack.run(batch.ids, batch.step(), select=lasts, taps=(tap,)).taps[tap]
        if found.shape[0] == batch.ids.shape[0]:
            return found if at is None else found[at]
        if self.read == "every":
            raise KeifuError(f"head {self.head!r} judges rows: it cannot be read at every token")
        return found if at is None else found[torch.searchsorted(lasts, at)]

    def _ends(self, batch: Sequences) -> Tensor:
        """The token of each row that is read."""
        return batch.firsts() if self.read == "first" else batch.lasts()

    def _places(self, batch: Sequences) -> tuple[Tensor, Tensor]:
        """Where labels are, and the labels."""
        size = batch.ids.shape[0] if self.read == "every" else len(batch.lengths)
        if batch.labels is None or batch.labels.shape[0] != size:
            what = "token" if self.read == "every" else "row"
            raise KeifuError(f"classification reads {self.read!r}: it needs one label a {what}")
        keep = (batch.labels != IGNORE).nonzero()[:, 0]
        if self.read == "every":
            return keep, batch.labels[keep]
        return self._ends(batch)[keep], batch.labels[keep]


objective = Classification
