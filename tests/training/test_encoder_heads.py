"""Encoder heads in training: losses equal transformers', toy tasks are learnt whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from keifu.core.errors import KeifuError
from keifu.families.bert import Bert
from keifu.nn.losses import IGNORE
from keifu.training import Sequences
from keifu.training.objectives.classification import Classification
from keifu.training.objectives.masked_lm import MaskedLM
from keifu.training.objectives.span import Span, span_labels
from recipes import encoder_heads
from tests.families.parity import converted, randomise, tokens

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}


def both(suffix: str) -> tuple[Any, Any]:
    theirs: Any = getattr(transformers, f"Bert{suffix}")(transformers.BertConfig(**SIZES))
    randomise(theirs.eval())
    config = {**theirs.config.to_dict(), "architectures": [f"Bert{suffix}"]}
    return converted(Bert.from_hf(config), theirs), theirs


def test_a_toy_tagger_finds_every_entity() -> None:
    assert encoder_heads.entity_f1() == 1.0


def test_a_toy_reader_answers_every_question() -> None:
    assert encoder_heads.answer_f1() == 1.0


def test_untrained_they_find_little() -> None:
    assert encoder_heads.entity_f1(steps=1) < 0.5
    assert encoder_heads.answer_f1(steps=1) < 0.5


def test_span_loss_is_theirs() -> None:
    ours, theirs = both("ForQuestionAnswering")
    ids, ends = tokens(96, 4, 11), torch.tensor([[0, 0], [2, 5], [7, 7], [3, 10]])
    labels = [span_labels(11, *pair) for pair in ends.tolist()]
    loss = Span()(ours, Sequences.of(list(ids), labels))
    want = theirs(ids, start_positions=ends[:, 0], end_positions=ends[:, 1])
    torch.testing.assert_close(loss.total / loss.count, want.loss, atol=1e-5, rtol=1e-4)
    logits = torch.stack([want.start_logits, want.end_logits]).argmax(-1).T
    assert int(loss.metrics["exact"][0]) == int((logits == ends).all(1).sum())
    ragged = Sequences.of([ids[0, :6], ids[1]], [span_labels(6, 1, 2), labels[1]])
    alone = [Span()(ours, Sequences.of([row], [label])) for row, label in
             ((ids[0, :6], span_labels(6, 1, 2)), (ids[1], labels[1]))]  # fmt: skip
    total = sum(float(one.total.detach()) for one in alone)
    assert float(Span()(ours, ragged).total.detach()) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(
    ("suffix", "head", "read"),
    [
        ("ForSequenceClassification", "classify", "first"),
        ("ForTokenClassification", "tag", "every"),
    ],
)
def test_classification_loss_is_theirs(suffix: str, head: str, read: Any) -> None:
    ours, theirs = both(suffix)
    ids = tokens(96, 4, 11)
    labels = torch.tensor([0, 1, 1, 0])
    if read == "every":
        labels = tokens(2, 4, 11, seed=3)
        labels[:, 0] = IGNORE
    loss = Classification(head=head, read=read)(ours, Sequences.of(list(ids), list(labels)))
    want = theirs(ids, labels=labels).loss
    torch.testing.assert_close(loss.total / loss.count, want, atol=1e-5, rtol=1e-4)


def test_masked_lm_loss_is_theirs() -> None:
    ours, theirs = both("ForMaskedLM")
    ids = tokens(96, 4, 11)
    labels = torch.where(torch.rand(ids.shape, generator=torch.manual_seed(0)) < 0.3, ids, IGNORE)
    loss = MaskedLM()(ours, Sequences.of(list(ids), list(labels)))
    want = theirs(ids, labels=labels).loss
    torch.testing.assert_close(loss.total / loss.count, want, atol=1e-5, rtol=1e-4)


def test_labels_outside_the_head_are_one_line() -> None:
    ours, _ = both("ForTokenClassification")
    ids = tokens(96, 1, 5)
    batch = Sequences.of(list(ids), [[0, 1, 2, 0, 0]])
    with pytest.raises(KeifuError, match=r"^label 2 is outside the head: 0 to 1 are allowed$"):
        Classification(head="tag", read="every")(ours, batch)
    with pytest.raises(KeifuError, match="no head 'answer'; known: tag"):
        Span()(ours, batch)
    with pytest.raises(KeifuError, match="an answer from 3 to 9 is not in a row of 5 tokens"):
        span_labels(5, 3, 9)
