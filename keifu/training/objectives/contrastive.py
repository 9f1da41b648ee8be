"""Contrastive embedding: a text is nearer to its match than to the other texts of its batch.

Source: van den Oord et al. 2018, arXiv 1807.03748 (InfoNCE); in-batch negatives: Karpukhin et al.
2020, section 3.2; two crops of one text as a match: Izacard et al. 2022, arXiv 2112.09118, section
3.1; rows in parts: Gao et al. 2021, arXiv 2101.06983 (GradCache).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from keifu.core.errors import KeifuError, unknown
from keifu.data.sentence_pairs import crop
from keifu.data.vocabulary import Vocabulary
from keifu.nn.losses import info_nce
from keifu.nn.sentence import MODES, Pool
from keifu.nn.stack import StackModule
from keifu.training.batch import Matches, Sequences
from keifu.training.objective import Loss, Objective, noting, stack_of, states
from keifu.training.reading import Drawn, Reader, merged


@dataclass(frozen=True, kw_only=True)
class Contrastive(Objective[Matches]):
    """Items are rows. The negatives of a row are the other matches of its own batch.

    So the loss is of a batch: with accumulation each batch of a step has its own negatives, and two
    batches of four are not the step that one of eight is. For many negatives make batches large and
    `part` small: the memory is that of `part` rows, the gradient the same (at two forward passes).
    """

    temperature: float = 0.05
    """Divides the cosines"""
    pool: Literal["mean", "cls", "lasttoken"] = "mean"
    """How a row becomes a vector, unless the model has a head named sentence"""
    symmetric: bool = False
    """Texts are told apart by their matches, too; the mean of both"""
    part: int | None = None
    """Rows whose activations are held at once (none: all)"""

    def __post_init__(self) -> None:
        if self.pool not in MODES:
            raise unknown("pooling", self.pool, MODES)
        if self.temperature <= 0 or (self.part is not None and self.part < 1):
            raise KeifuError("temperature must be above 0 and part 1 or more")

    def __call__(self, model: nn.Module, batch: Matches) -> Loss:
        """The loss of a batch."""
        stack = stack_of(model, "contrastive")
        first, second = (self._vectors(stack, side) for side in (batch.first, batch.second))
        scores, right = (
            first @ second.T / self.temperature,
            torch.arange(len(first)).to(first.device),
        )
        total = info_nce(scores, right)
        if self.symmetric:
            total = (total + info_nce(scores.T, right)) / 2
        count = len(first)
        found = (scores.detach().argmax(-1) == right).sum()
        own = Loss(total=total, count=count, metrics={"accuracy": (found, count)})
        return noting(own, batch.first.dropped, count)

    def reader(self, vocabulary: Vocabulary) -> Reader[Matches]:
        """A text and its target; without one, two crops of the text."""

        def read(examples: list[Drawn]) -> Matches:
            rows = [self._sides(one, vocabulary) for one in examples]
            teach = [bool(a) and bool(b) for a, b in rows]
            empty = [vocabulary.roles.get("eos", 0)]
            sides = [
                merged(
                    (Sequences.of([row[n] or empty]), t) for row, t in zip(rows, teach, strict=True)
                )
                for n in (0, 1)
            ]
            return Matches(first=sides[0], second=sides[1])

        return lambda examples: read(list(examples))

    def _sides(self, drawn: Drawn, vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
        ids = drawn.example.ids.tolist()
        if drawn.example.target is not None:
            sides = [ids, drawn.example.target.tolist()]
        else:
            bare = vocabulary.bare(ids)
            sides = [crop(bare, drawn.random), crop(bare, drawn.random)]
        first, second = (vocabulary.marked(side) if side else [] for side in sides)
        return first, second

    def _vectors(self, stack: StackModule, rows: Sequences) -> Tensor:
        """(rows, width) of length 1; in parts, each is run again for its gradient."""
        if self.part is None or len(rows.lengths) <= self.part:
            return self._of(stack, rows)
        each = rows.ids.split(list(rows.lengths))
        parts = [
            Sequences.of(each[start : start + self.part])
            for start in range(0, len(each), self.part)
        ]
        made = [checkpoint(self._of, stack, one, use_reentrant=False) for one in parts]
        return torch.cat([vector for vector in made if isinstance(vector, Tensor)])

    def _of(self, stack: StackModule, rows: Sequences) -> Tensor:
        step, tap = rows.step(), "head.sentence"
        if "sentence" in stack.heads:
            none = rows.ids.new_zeros(0)
            return F.normalize(
                stack.run(rows.ids, step, select=none, taps=(tap,)).taps[tap], dim=-1
            )
        hidden = states(stack, rows.ids, step)
        pool = Pool(width=hidden.shape[-1], modes=(self.pool,)).build()
        return F.normalize(pool(hidden, step), dim=-1)


objective = Contrastive
