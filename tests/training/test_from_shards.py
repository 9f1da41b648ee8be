"""From text to a step of training: rows of shards teach what their documents do, whoever asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from keifu.data.corpus import Corpus
from keifu.data.feed import FeedOptions, feed
from keifu.data.packing import Fit
from keifu.data.tokenise import tokenise
from keifu.data.vocabulary import Vocabulary
from keifu.families.llama import Llama
from keifu.training.batch import Sequences
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.reading import numbered
from tests.data.shard_texts import jsonl, texts, tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty short documents of two sources."""
    for n, name in enumerate("ab"):
        jsonl(tmp_path / f"{name}.jsonl", texts(15, seed=n, longest=9))
    given = {name: [tmp_path / f"{name}.jsonl"] for name in "ab"}
    tokenise(tmp_path / "out", given, tokenizer(), workers=1)
    return tmp_path / "out"


def test_packed_rows_have_the_loss_of_their_documents(folder: Path) -> None:
    """All rows of an epoch against every document alone: the same sum over the same count."""
    model: Any = replace(Llama.tiny(), vocab=400).spec().build().initialise(0)
    objective, stream = CausalLM(), Corpus(folder).stream("a")
    rows = Fit(stream=stream, length=64)
    assert rows.epoch < stream.documents
    data = numbered(rows, 1, objective.reader(Vocabulary.of(tokenizer())))
    alone = [stream.document(n).ids.tolist() for n in range(stream.documents)]
    with torch.no_grad():
        packed = [objective(model, data(n)) for n in range(rows.epoch)]
        single = [objective(model, Sequences.of([ids])) for ids in alone]
    assert sum(loss.count for loss in packed) == sum(loss.count for loss in single)
    total = sum(float(loss.total) for loss in packed)
    assert total == pytest.approx(sum(float(loss.total) for loss in single), rel=1e-5)


def test_batches_of_any_size_hold_the_same_rows(folder: Path) -> None:
    """One of eight is two of four and eight of one, of a mixture opened anew each time."""
    options = FeedOptions(shards=(str(folder),), length=16, temperature=2.0, seed=5)
    read = CausalLM().reader(Vocabulary.of(tokenizer()))
    found = []
    for size in (8, 4, 1):
        data = numbered(feed(options), size, read)
        found.append(torch.cat([data(n).ids for n in range(3 * 8 // size)]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
