"""Next-token prediction: every token from those before it in its row.

Source: Bengio et al. 2003, section 2; Radford et al. 2018, equation 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from keifu.core.errors import KeifuError
from keifu.data.vocabulary import Vocabulary
from keifu.nn.losses import IGNORE
from keifu.training.batch import Sequences
from keifu.training.objective import Auxiliary, Loss, Objective, head_loss, noting, stack_of, states
from keifu.training.reading import Drawn, Reader, kept, merged, pieces


@dataclass(frozen=True, kw_only=True)
class CausalLM(Objective[Sequences]):
    """Shifted cross-entropy; items are predicted tokens.

    A row is a document: its first token is given and nothing is predicted across rows. Labels, one
    a token, are the ids by default; IGNORE leaves a token out (a prompt).
    """

    smoothing: float = 0.0
    """Label smoothing"""
    z: float = 0.0
    """Weight of log(Z)^2 (Chowdhery et al. 2022, section 5: 1e-4)"""
    auxiliary: Mapping[str, float] = field(default_factory=dict)
    """Weights of losses that layers emit, by name (of experts: balance, router_z)"""

    def __call__(self, model: nn.Module, batch: Sequences) -> Loss:
        """The loss of a batch."""
        stack, (at, labels) = stack_of(model, "causal-lm"), shifted(batch)
        auxiliary = Auxiliary(self.auxiliary)
        hidden = states(stack, batch.ids, batch.step(auxiliary.emit))[at]
        own = head_loss(stack, hidden, labels, smoothing=self.smoothing, z=self.z)
        return noting(auxiliary.added(own), batch.dropped, len(batch.lengths))

    def reader(self, vocabulary: Vocabulary) -> Reader[Sequences]:
        """Every document of an example is a row; packed ones stay apart."""
        return lambda examples: merged(self.row(one, vocabulary) for one in examples)

    def row(self, drawn: Drawn, vocabulary: Vocabulary) -> tuple[Sequences, bool]:
        """An example's rows, and whether they teach anything."""
        labels = kept(drawn.example)
        teaches = any(label != IGNORE for row in labels for label in row[1:])
        rows = pieces(drawn.example)
        return Sequences.of(rows or [[0]], labels or [[IGNORE]]), teaches


def shifted(batch: Sequences) -> tuple[Tensor, Tensor]:
    """Places that predict, and what each has to predict: the label of the token after it."""
    marks = batch.ids if batch.labels is None else batch.labels
    if marks.shape != batch.ids.shape:
        raise KeifuError(f"causal-lm needs a label a token, not {marks.shape[0]}")
    next_label = torch.full_like(marks, IGNORE)
    next_label[:-1] = marks[1:]
    next_label[batch.lasts()] = IGNORE
    at = (next_label != IGNORE).nonzero()[:, 0]
    return at, next_label[at]


objective = CausalLM
