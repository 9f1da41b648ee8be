"""Span prediction: where an answer begins and where it ends, each a softmax over a row's tokens.

Source: Devlin et al. 2019, sections 4.2 and 4.3. A question without an answer has its first token
(the class token) as begin and end, which gives the null score of SQuAD 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keifu.core.errors import KeifuError, unknown
from keifu.data.vocabulary import Vocabulary
from keifu.training.batch import Sequences
from keifu.training.objective import Loss, Objective, stack_of, token_loss
from keifu.training.reading import Drawn, Reader, merged

BEGIN, END = 1, 2
"""Bits of a token's label."""


def span_labels(length: int, begin: int = 0, end: int = 0) -> list[int]:
    """Labels of a row of `length` tokens whose answer is from token `begin` to token `end`."""
    if not 0 <= begin <= end < length:
        raise KeifuError(f"an answer from {begin} to {end} is not in a row of {length} tokens")
    labels = [0] * length
    labels[begin] |= BEGIN
    labels[end] |= END
    return labels


@dataclass(frozen=True, kw_only=True)
class Span(Objective[Sequences]):
    """Cross-entropy of an answer's first and last token, each half; items are rows."""

    head: str = "answer"
    """Which of the model's further heads gives a begin and an end score a token"""

    def __call__(self, model: nn.Module, batch: Sequences) -> Loss:
        """The loss of a batch."""
        stack = stack_of(model, "span")
        if self.head not in stack.heads:
            raise unknown("head", self.head, stack.heads)
        if batch.labels is None or batch.labels.shape != batch.ids.shape:
            raise KeifuError("span needs a label a token: see span_labels")
        tap, none = f"head.{self.head}", batch.lasts()[:0]
        scores = stack.run(batch.ids, batch.step(), select=none, taps=(tap,)).taps[tap]
        sides = [
            _rows(scores[:, n], batch.labels & bit, batch.lengths)
            for n, bit in enumerate((BEGIN, END))
        ]
        begin, end = (token_loss(*side) for side in sides)
        exact = torch.stack([logits.argmax(-1) == at for logits, at in sides]).all(0).sum()
        count = len(batch.lengths)
        total = (begin.total + end.total) / 2
        return Loss(total=total, count=count, metrics={"exact": (exact, count)})

    def reader(self, vocabulary: Vocabulary) -> Reader[Sequences]:
        """Text and question as one row of ids; its first span is the answer, none is the null."""
        return lambda examples: merged((_row(one, vocabulary), True) for one in examples)


def _row(drawn: Drawn, vocabulary: Vocabulary) -> Sequences:
    example = drawn.example
    row, shift = vocabulary.marked(example.ids.tolist()), len(vocabulary.prefix)
    begin, stop = example.spans[0] if example.spans else (-shift, 1 - shift)
    answered = stop + shift <= len(row)
    marks = span_labels(len(row), *((begin + shift, stop + shift - 1) if answered else (0, 0)))
    return Sequences.of([row], [marks])


def _rows(scores: Tensor, marks: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Scores (rows, longest), -inf where there is no token, and each row's one marked place."""
    at = [row.nonzero()[:, 0] for row in marks.split(list(lengths))]
    wrong = next((n for n, places in enumerate(at) if len(places) != 1), None)
    if wrong is not None:
        raise KeifuError(f"row {wrong} marks {len(at[wrong])} ends of an answer: one is needed")
    padded = nn.utils.rnn.pad_sequence(
        scores.split(list(lengths)), batch_first=True, padding_value=float("-inf")
    )
    return padded.float(), torch.cat(at)


objective = Span
