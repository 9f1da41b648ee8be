"""Sequence to sequence: every target token from the source and the true tokens before it.

Source: Sutskever et al. 2014, section 3.2 (teacher forcing); smoothing: Vaswani et al. 2017, 5.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from keifu.core.errors import KeifuError
from keifu.nn.pair import PairModule
from keifu.training.batch import Pairs
from keifu.training.objective import Auxiliary, Loss, Objective, token_loss


@dataclass(frozen=True, kw_only=True)
class Seq2Seq(Objective[Pairs]):
    """Cross-entropy under teacher forcing; items are target tokens after the first."""

    smoothing: float = 0.0
    """Label smoothing"""
    auxiliary: Mapping[str, float] = field(default_factory=dict)
    """Weights of losses that layers emit, by name (of experts: balance, router_z)"""

    def __call__(self, model: nn.Module, batch: Pairs) -> Loss:
        """The loss of a batch."""
        if not isinstance(model, PairModule):
            raise KeifuError(f"seq2seq trains an encoder and decoder, not {type(model).__name__}")
        source, source_mask = batch.source.grid()
        target, mask = batch.target.grid()
        keep = mask[:, 1:]
        auxiliary = Auxiliary(self.auxiliary)
        out = model(
            source,
            target[:, :-1],
            source_mask=source_mask,
            landmarks=batch.source.landmarks,
            target_mask=keep,
            emit=auxiliary.emit,
        )
        if out.logits is None:
            raise KeifuError("seq2seq needs a decoder with a language-model head")
        labels = target[:, 1:][keep]
        return auxiliary.added(token_loss(out.logits[keep], labels, self.smoothing))


objective = Seq2Seq
