"""Masked language modelling: the hidden tokens from both sides.

Source: Devlin et al. 2019, section 3.1, task 1. What is hidden is the data's affair: a batch brings
ids with their masks in, and labels that are IGNORE but where a token has to be found.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from keifu.core.errors import KeifuError
from keifu.nn.losses import IGNORE
from keifu.training.batch import Sequences
from keifu.training.objective import Loss, Objective, head_loss, stack_of, states


@dataclass(frozen=True, kw_only=True)
class MaskedLM(Objective[Sequences]):
    """Cross-entropy at the labelled tokens, which are its items."""

    def __call__(self, model: nn.Module, batch: Sequences) -> Loss:
        """The loss of a batch."""
        labels = batch.labels
        if labels is None or labels.shape != batch.ids.shape:
            raise KeifuError("masked-lm needs a label a token: IGNORE (-100) where none is hidden")
        at = (labels != IGNORE).nonzero()[:, 0]
        stack = stack_of(model, "masked-lm")
        return head_loss(stack, states(stack, batch.ids, batch.step())[at], labels[at])


objective = MaskedLM
