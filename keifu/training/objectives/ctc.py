"""Connectionist temporal classification: labels from frames, without saying which frame is which.

Source: Graves et al. 2006, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from keifu.core.errors import KeifuError
from keifu.data.vocabulary import Vocabulary
from keifu.nn import losses
from keifu.nn.step import fresh_step
from keifu.training.objective import Loss, Objective, stack_of
from keifu.training.reading import Drawn, Reader


@dataclass(frozen=True, kw_only=True, eq=False)
class Utterances:
    """Rows of frames, one after another, and the labels that each row says."""

    frames: Tensor
    """(frames, bins) of all rows."""
    lengths: tuple[int, ...]
    labels: Tensor
    """(labels,) of all rows; the blank is none."""
    counts: tuple[int, ...]
    """Labels of each row."""

    def __post_init__(self) -> None:
        fits = (sum(self.lengths), sum(self.counts)) == (len(self.frames), len(self.labels))
        if len(self.lengths) != len(self.counts) or not fits or min(self.lengths, default=1) < 1:
            raise KeifuError(
                f"{len(self.lengths)} rows of frames and {len(self.counts)} of labels do not make "
                f"{len(self.frames)} frames and {len(self.labels)} labels; every row needs a frame"
            )

    @classmethod
    def of(cls, frames: Sequence[Tensor], labels: Sequence[Sequence[int]]) -> Self:
        """From one (frames, bins) and one list of labels a row."""
        return cls(
            frames=torch.cat(list(frames)),
            lengths=tuple(len(row) for row in frames),
            labels=torch.tensor([label for row in labels for label in row], dtype=torch.long),
            counts=tuple(len(row) for row in labels),
        )

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device."""
        return replace(self, frames=self.frames.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True)
class CTC(Objective[Utterances]):
    """The sum over all alignments; items are rows."""

    blank: int = 0
    """The class that is no label"""
    zero_infinity: bool = False
    """Leave out rows with too few frames for their labels (default: an error that names one)"""

    def __call__(self, model: nn.Module, batch: Utterances) -> Loss:
        """The loss of a batch."""
        step = fresh_step(list(batch.lengths), batch.frames.device)
        logits = stack_of(model, "ctc").run(batch.frames, step).logits
        if logits is None:
            raise KeifuError("ctc needs a model with a head")
        self._check(batch.labels, logits.shape[-1])
        rows = logits.log_softmax(-1).split(list(batch.lengths))
        each = losses.ctc(
            pad_sequence(list(rows)),
            pad_sequence(list(batch.labels.split(list(batch.counts))), batch_first=True),
            torch.tensor(batch.lengths, device=logits.device),
            torch.tensor(batch.counts, device=logits.device),
            blank=self.blank,
        )
        lost = each.isinf()
        if lost.any() and not self.zero_infinity:
            row = int(lost.nonzero()[0, 0])
            raise KeifuError(
                f"row {row} has {batch.lengths[row]} frames, too few for its {batch.counts[row]} "
                "labels (equal neighbours need one more): leave it out or set zero_infinity"
            )
        count = len(batch.lengths) - int(lost.sum())
        total = torch.where(lost, 0.0, each).sum()
        return Loss(total=total, count=count, metrics={"lost": (lost.sum(), len(batch.lengths))})

    def reader(self, vocabulary: Vocabulary) -> Reader[Utterances]:
        """Frames and the labels of their target."""

        def read(examples: Sequence[Drawn]) -> Utterances:
            frames, labels = [], []
            for one in examples:
                if one.example.frames is None or one.example.target is None:
                    raise KeifuError("ctc needs examples with frames and a target: a sound's text")
                frames.append(torch.from_numpy(one.example.frames))
                labels.append(one.example.target.tolist())
            return Utterances.of(frames, labels)

        return read

    def _check(self, labels: Tensor, classes: int) -> None:
        wrong = labels[(labels < 0) | (labels >= classes) | (labels == self.blank)]
        if wrong.numel():
            raise KeifuError(
                f"label {int(wrong[0])} is not allowed: 0 to {classes - 1} without the blank, "
                f"{self.blank}"
            )


objective = CTC
