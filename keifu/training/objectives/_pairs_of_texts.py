"""What the pre-training of BERT and ALBERT shares: masked words and a question about two texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keifu.core.errors import KeifuError, unknown
from keifu.data.masking import Masking
from keifu.data.sentence_pairs import Document, Pair, sentences
from keifu.data.vocabulary import Vocabulary
from keifu.nn.losses import IGNORE, cross_entropy
from keifu.training.batch import Sequences
from keifu.training.objective import Loss, check_labels, noting, stack_of
from keifu.training.objectives.masked_lm import MaskedLM
from keifu.training.reading import Drawn


@dataclass(frozen=True, kw_only=True)
class PairsOfTexts(MaskedLM):
    """Items are rows: the mean loss of a row's hidden tokens plus that of its question.

    So it is a sum over items that do not know of each other's batch. BERT's code divides by all
    hidden tokens of a batch, which is the same where its rows hide equally many.
    """

    most: int = 128
    """Tokens of both texts together"""
    head: str = "next"
    """Which of the model's further heads answers the question"""

    def pair(
        self, document: Document, other: Callable[[], Document], most: int, drawn: Drawn
    ) -> Pair:
        """Two texts and the answer."""
        raise NotImplementedError

    def __call__(self, model: nn.Module, batch: Sequences) -> Loss:
        """The loss of a batch."""
        stack, rows = stack_of(model, "pre-training"), len(batch.lengths)
        if self.head not in stack.heads:
            raise unknown("head", self.head, stack.heads)
        if batch.labels is None or batch.classes is None:
            raise KeifuError("pairs of texts need a label a token and a class a row")
        at = (batch.labels != IGNORE).nonzero()[:, 0]
        tap = f"head.{self.head}"
        out = stack.run(batch.ids, batch.step(), select=at, taps=(tap,))
        if out.logits is None:
            raise KeifuError("this objective needs a model with a language-model head")
        labels, scores = batch.labels[at], out.taps[tap]
        check_labels(labels, out.logits.shape[-1])
        words = cross_entropy(out.logits, labels, weights=_shares(at, batch))
        answered = batch.classes != IGNORE
        question = cross_entropy(scores, batch.classes)
        right = (out.logits.detach().argmax(-1) == labels).sum()
        known = ((scores.detach().argmax(-1) == batch.classes) & answered).sum()
        own = Loss(
            total=words + question,
            count=int(answered.sum()),
            metrics={
                "accuracy": (right, len(labels)),
                self.head: (known, int(answered.sum())),
            },
        )
        return noting(own, batch.dropped, rows)

    def _rows(
        self, drawn: Drawn, vocabulary: Vocabulary, masking: Masking
    ) -> tuple[Sequences, bool]:
        layout = vocabulary.layout()
        marks = sum(map(len, (layout.before, layout.between, layout.after)))
        room = self.most if vocabulary.context is None else vocabulary.context - marks
        ids = vocabulary.bare(drawn.example.ids.tolist())
        teaches = len(ids) > 1

        def other() -> Document:
            found = vocabulary.bare(drawn.other().ids.tolist())
            return sentences(found, vocabulary.ends) or [[vocabulary.id("mask")]]

        pair = Pair((), (), IGNORE)
        if teaches:
            document = sentences(ids, vocabulary.ends)
            pair = self.pair(document, other, min(room, self.most), drawn)
        first, second = layout.segments
        row = [*layout.before, *((t, first) for t in pair.first), *layout.between]
        row += [*((t, second) for t in pair.second), *layout.after]
        one = self.hidden([t for t, _ in row], drawn, vocabulary, masking)
        return (
            Sequences(
                ids=torch.tensor(one.ids),
                lengths=(len(row),),
                labels=torch.tensor(one.labels),
                segments=torch.tensor([kind for _, kind in row]),
                classes=torch.tensor([pair.label]),
            ),
            teaches,
        )


def _shares(at: Tensor, batch: Sequences) -> Tensor:
    """(hidden,) one over the number of hidden tokens in the same row."""
    lengths = torch.tensor(batch.lengths, device=at.device)
    row = torch.repeat_interleave(lengths)[at]
    return 1 / torch.bincount(row, minlength=len(lengths))[row]
