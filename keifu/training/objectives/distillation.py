"""Distillation: a smaller model learns what a larger one would say at every token.

Source: Hinton et al. 2015, arXiv 1503.02531, section 2; DistilBERT: Sanh et al. 2019, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from keifu.core.errors import KeifuError
from keifu.nn.losses import divergence
from keifu.training.batch import Sequences
from keifu.training.objective import Loss, noting, stack_of, token_loss
from keifu.training.objectives.causal_lm import CausalLM, shifted


@dataclass(frozen=True, kw_only=True)
class Distillation(CausalLM):
    """share * T^2 * KL(teacher || student) + (1 - share) * the causal loss; items are tokens."""

    teacher: nn.Module | None = None
    """A stack over the same vocabulary; it is not changed"""
    temperature: float = 2.0
    """Divides both logits"""
    share: float = 0.5
    """Of the teacher's part"""

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 <= self.share <= 1:
            raise KeifuError("temperature must be above 0 and share from 0 to 1")

    def __call__(self, model: nn.Module, batch: Sequences) -> Loss:
        """The loss of a batch."""
        if self.teacher is None:
            raise KeifuError("distillation needs a teacher: Distillation(teacher=model)")
        at, labels = shifted(batch)
        student, teacher = (stack_of(m, "distillation") for m in (model, self.teacher))
        logits = student.run(batch.ids, batch.step(), select=at).logits
        with torch.no_grad():
            wanted = teacher.run(batch.ids, batch.step(), select=at).logits
        if logits is None or wanted is None or logits.shape != wanted.shape:
            sizes = [None if x is None else x.shape[-1] for x in (logits, wanted)]
            raise KeifuError(f"student and teacher must share a vocabulary: they have {sizes}")
        own = token_loss(logits, labels, self.smoothing)
        told = divergence(logits, wanted, temperature=self.temperature)
        total = self.share * told + (1 - self.share) * own.total
        metrics = {**own.metrics, "divergence": (told.detach(), own.count)}
        found = Loss(total=total, count=own.count, metrics=metrics)
        return noting(found, batch.dropped, len(batch.lengths))


objective = Distillation
