"""Sequence to sequence: every target token from the source and the true tokens before it.

Source: Sutskever et al. 2014, section 3.2 (teacher forcing); smoothing: Vaswani et al. 2017, 5.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from keifu.core.errors import KeifuError
from keifu.nn.losses import IGNORE
from keifu.nn.pair import PairModule
from keifu.nn.step import fresh_step
from keifu.training.batch import Pairs
from keifu.training.objective import Auxiliary, Loss, Objective, head_loss, states


@dataclass(frozen=True, kw_only=True)
class Seq2Seq(Objective[Pairs]):
    """Cross-entropy under teacher forcing; items are target tokens after the first."""

    smoothing: float = 0.0
    """Label smoothing"""
    z: float = 0.0
    """Weight of log(Z)^2"""
    auxiliary: Mapping[str, float] = field(default_factory=dict)
    """Weights of losses that layers emit, by name (of experts: balance, router_z)"""

    def __call__(self, model: nn.Module, batch: Pairs) -> Loss:
        """The loss of a batch."""
        if not isinstance(model, PairModule):
            raise KeifuError(f"seq2seq trains an encoder and decoder, not {type(model).__name__}")
        auxiliary, target = Auxiliary(self.auxiliary), batch.target
        memory = model.read(batch.source.ids, batch.source.step(auxiliary.emit))
        lasts = torch.zeros_like(target.ids, dtype=torch.bool)
        lasts[target.lasts()] = True
        step = fresh_step(
            [n - 1 for n in target.lengths],
            target.ids.device,
            memories={model.spec.memory: memory},
            emit=auxiliary.emit,
        )
        hidden = states(model.decoder, target.ids[~lasts], step)
        firsts = torch.zeros_like(lasts)
        firsts[target.firsts()] = True
        labels = (target.ids if target.labels is None else target.labels)[~firsts]
        keep = labels != IGNORE
        own = head_loss(
            model.decoder, hidden[keep], labels[keep], smoothing=self.smoothing, z=self.z
        )
        return auxiliary.added(own)


objective = Seq2Seq
