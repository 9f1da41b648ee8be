"""Sequence to sequence: every target token from the source and the true tokens before it.

Source: Sutskever et al. 2014, section 3.2 (teacher forcing); smoothing: Vaswani et al. 2017, 5.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from keifu.core.errors import KeifuError
from keifu.data.vocabulary import Vocabulary
from keifu.nn.losses import IGNORE
from keifu.nn.pair import PairModule
from keifu.nn.step import fresh_step
from keifu.training.batch import Pairs, Sequences
from keifu.training.objective import Auxiliary, Loss, Objective, head_loss, noting, states
from keifu.training.reading import Drawn, Reader, paired


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
        return noting(auxiliary.added(own), target.dropped, len(target.lengths))

    def reader(self, vocabulary: Vocabulary) -> Reader[Pairs]:
        """An example's text and its target, each as `made` has them."""
        return lambda examples: paired(self._row(one, vocabulary) for one in examples)

    def made(self, drawn: Drawn, vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
        """What is read, with its marks, and what is to be written, without start and end."""
        if drawn.example.target is None:
            raise KeifuError("seq2seq needs examples with a target: give pairs of texts")
        read = vocabulary.marked(vocabulary.bare(drawn.example.ids.tolist()))
        return read, vocabulary.bare(drawn.example.target.tolist())

    def _row(self, drawn: Drawn, vocabulary: Vocabulary) -> tuple[Sequences, Sequences, bool]:
        """The decoder reads the start token and the target, and writes the target and its end."""
        start, (read, written) = vocabulary.id("start"), self.made(drawn, vocabulary)
        teaches = bool(read) and bool(written)
        read = read or [start]
        end = [vocabulary.roles["eos"]] if "eos" in vocabulary.roles else [start]
        room = None if vocabulary.context is None else vocabulary.context - 1
        target = [start, *(written + end)[:room]]
        labels = target if teaches else [IGNORE] * len(target)
        return (
            Sequences.of([read[: vocabulary.context]]),
            Sequences.of([target], [labels]),
            teaches,
        )


objective = Seq2Seq
