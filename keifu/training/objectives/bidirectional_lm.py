"""Bidirectional LM: one direction predicts the next word, the other the one before, apart.

Source: Peters et al. 2018, arXiv 1802.05365, section 3.1: the softmax is the same for both. Here it
is a head of its own ("words"), over all words, where the released code samples some.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from keifu.core.errors import KeifuError
from keifu.data.vocabulary import Vocabulary
from keifu.nn.characters import CharacterCNN
from keifu.nn.linear import Linear
from keifu.nn.losses import IGNORE, linear_cross_entropy
from keifu.nn.part import Part
from keifu.nn.projection import Projection
from keifu.nn.stack import Stack
from keifu.nn.task_heads import Scores
from keifu.text.characters import character_ids
from keifu.training.batch import Sequences
from keifu.training.objective import Loss, Objective, check_labels, noting, stack_of, states
from keifu.training.reading import Drawn, Reader, kept, merged, pieces

HEAD = "words"


@dataclass(frozen=True, kw_only=True)
class BidirectionalLM(Objective[Sequences]):
    """The mean of both directions' cross-entropies; items are words that both predict."""

    def __call__(self, model: nn.Module, batch: Sequences) -> Loss:
        """The loss of a batch: character ids (words, length), labels the words' own ids."""
        stack = stack_of(model, "bidirectional-lm")
        head = dict(stack.heads.items()).get(HEAD)
        if not isinstance(head, Linear) or head.weight is None or batch.labels is None:
            raise KeifuError("bidirectional-lm needs a head of words: build it with `fitted(spec)`")
        check_labels(batch.labels, head.outputs)
        along, against = states(stack, batch.ids, batch.step()).chunk(2, -1)
        after, before = torch.full_like(batch.labels, IGNORE), torch.full_like(batch.labels, IGNORE)
        after[:-1], before[1:] = batch.labels[1:], batch.labels[:-1]
        after[batch.lasts()], before[batch.firsts()] = IGNORE, IGNORE
        total, right, count = along.new_zeros(()), 0, 0
        for hidden, labels in ((along, after), (against, before)):
            at = (labels != IGNORE).nonzero()[:, 0]
            one = Projection(x=hidden[at], weight=head.weight, bias=head.bias)
            found = linear_cross_entropy(one, labels[at])
            total, count = total + found.total, count + len(at)
            right = right + int(found.right)
        own = Loss(total=total, count=count, metrics={"accuracy": (right, count)})
        return noting(own, batch.dropped, len(batch.lengths))

    def fitted(self, spec: Part, vocabulary: Vocabulary) -> Part:
        """With the head, over one direction's width."""
        if not isinstance(spec, Stack) or not isinstance(spec.input, CharacterCNN):
            raise KeifuError("bidirectional-lm needs a stack that reads words by their characters")
        words = Scores(width=spec.input.width, count=vocabulary.size)
        return replace(spec, heads=(*spec.heads, (HEAD, words)))

    def reader(self, vocabulary: Vocabulary) -> Reader[Sequences]:
        """Words as characters, whose ids are the labels."""
        return lambda examples: merged(self._rows(one, vocabulary) for one in examples)

    def _rows(self, drawn: Drawn, vocabulary: Vocabulary) -> tuple[Sequences, bool]:
        spelt = vocabulary.spelt
        if spelt is None:
            raise KeifuError("bidirectional-lm needs a vocabulary that spells its words")

        def letters(token: int) -> list[int]:
            return character_ids(spelt(token).decode("utf-8", "replace").strip() or "�")

        rows = pieces(drawn.example) or [[0]]
        labels = kept(drawn.example) or [[IGNORE]]
        ids: Tensor = torch.tensor([letters(token) for row in rows for token in row])
        marks = torch.tensor([label for row in labels for label in row])
        teaches = any(len(row) > 1 for row in rows) and bool((marks != IGNORE).any())
        return Sequences(ids=ids, lengths=tuple(map(len, rows)), labels=marks), teaches


objective = BidirectionalLM
