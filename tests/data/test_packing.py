"""Rows of documents that stay apart: every token, every border, each epoch, at every length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from keifu.core.errors import KeifuError
from keifu.data import job
from keifu.data.corpus import Corpus, Stream
from keifu.data.example import Example
from keifu.data.feed import FeedOptions, feed, identity
from keifu.data.job import Encoding
from keifu.data.mixture import Mixture
from keifu.data.packing import Cut, Fit, Rows, Whole, fitted
from keifu.data.tokenise import tokenise
from tests.data.shard_texts import jsonl, texts, tokenizer


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stream:
    """Several shards of 200 documents."""
    monkeypatch.setattr(job, "_LEAST", 4096)
    path = jsonl(tmp_path / "a.jsonl", texts(200))
    manifest = tokenise(tmp_path / "out", {"a": [path]}, tokenizer(), workers=1)
    assert len(manifest.shards) > 3
    return Corpus(tmp_path / "out").stream("a")


def pieces(example: Example) -> list[tuple[int, ...]]:
    """A row's pieces as ids."""
    ends = np.cumsum(example.lengths)
    return [
        tuple(example.ids[b - n : b].tolist()) for n, b in zip(example.lengths, ends, strict=True)
    ]


def documents(stream: Stream) -> list[tuple[int, ...]]:
    """Every document's ids."""
    return [tuple(stream.document(n).ids.tolist()) for n in range(stream.documents)]


def epoch(rows: Rows, number: int = 0) -> list[Example]:
    """All rows of an epoch, as a run asks for them."""
    return [rows(number * rows.epoch + n) for n in range(rows.epoch)]


@pytest.mark.parametrize("length", [2, 7, 64, 1000, 10**6])
def test_cut_rows_are_the_stream(stream: Stream, length: int) -> None:
    """Unshuffled, rows in a row are the documents; pieces end where documents do."""
    every = [token for ids in documents(stream) for token in ids]
    ends = set(np.cumsum([len(ids) for ids in documents(stream)]).tolist())
    rows = epoch(Cut(stream=stream, length=length, shuffle=False))
    assert [t for row in rows for t in row.ids.tolist()][: len(every)] == every
    assert {len(row.ids) for row in rows} == {min(length, len(every))}
    at = 0
    for row in rows[:-1]:
        inside = {at + int(n) for n in np.cumsum(row.lengths)[:-1]}
        at += len(row.ids)
        assert inside == {end for end in ends if at - len(row.ids) < end < at}


def test_shuffled_epochs_hold_every_token_and_cut_elsewhere(stream: Stream) -> None:
    """As a multiset, the ring's tokens; another order and other cuts in the next epoch."""
    rows = Cut(stream=stream, length=64, seed=1)
    every = np.bincount([t for ids in documents(stream) for t in ids], minlength=400)
    twice = rows.epoch * 64 - stream.tokens
    for number in range(3):
        counts = np.bincount(
            np.concatenate([row.ids for row in epoch(rows, number)]), minlength=400
        )
        assert np.all(counts >= every)
        assert int((counts - every).sum()) == twice
    first, second = ([tuple(row.ids) for row in epoch(rows, n)] for n in (0, 1))
    assert not set(first) & set(second)
    again = Cut(stream=stream, length=64, seed=1)
    assert again(rows.epoch + 5).ids.tolist() == list(second[5])
    assert [tuple(row.ids) for row in epoch(Cut(stream=stream, length=64, seed=2))] != first


@pytest.mark.parametrize("length", [40, 64, 200])
def test_fitted_rows_cut_only_long_documents(stream: Stream, length: int) -> None:
    """Each piece is a document, or a full part of one longer than a row; all come once."""
    rows = epoch(Fit(stream=stream, length=length))
    found = sorted(piece for row in rows for piece in pieces(row))
    expected = [
        ids[n : n + length] for ids in documents(stream) for n in range(0, len(ids), length)
    ]
    assert found == sorted(expected)
    assert max(len(row.ids) for row in rows) <= length
    assert all(row.source == "a" for row in rows)


def test_best_fit_is_best_fit() -> None:
    """Against a plain search of the fullest row that still has room."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 30, 300)
    firsts, starts, sizes = fitted(lengths, 32)
    rooms: list[int] = []
    for size in sorted(lengths.tolist(), reverse=True):
        able = [n for n, room in enumerate(rooms) if room >= size]
        if able:
            rooms[min(able, key=lambda n: rooms[n])] -= size
        else:
            rooms.append(32 - size)
    held = np.add.reduceat(sizes, firsts[:-1])
    assert sorted((32 - held).tolist()) == sorted(rooms)
    assert sorted(starts.tolist()) == (np.cumsum(lengths) - lengths).tolist()


def test_whole_rows_are_documents_with_their_marks(tmp_path: Path) -> None:
    """A long one becomes several rows, each with marks; nothing is lost."""
    tok = tokenizer("wordpiece")
    path = jsonl(tmp_path / "a.jsonl", texts(60))
    tokenise(tmp_path / "out", {"a": [path]}, tok, workers=1)
    stream = Corpus(tmp_path / "out").stream("a")
    cls, sep = tok.id("[CLS]"), tok.id("[SEP]")
    rows = epoch(Whole(stream=stream, length=16, shuffle=False))
    assert all(row.ids[0] == cls and row.ids[-1] == sep and len(row.ids) <= 16 for row in rows)
    bodies = [token for row in rows for token in row.ids[1:-1].tolist()]
    assert bodies == [token for ids in documents(stream) for token in ids[1:-1]]
    assert all(row.pieces == () for row in rows)
    shuffled = epoch(Whole(stream=stream, length=16, seed=3), 2)
    assert sorted(tuple(r.ids) for r in shuffled) == sorted(tuple(r.ids) for r in rows)
    with pytest.raises(KeifuError, match="no room"):
        Whole(stream=stream, length=2)


def test_pairs_are_one_row_each(tmp_path: Path) -> None:
    """Cut to the length with their ends; masks are cut alike."""
    tok = tokenizer()
    path = jsonl(tmp_path / "a.jsonl", texts(20), q="the river", to="a stone. " * 20)
    encoding = Encoding(prompt="q", target="to")
    tokenise(tmp_path / "out", {"a": [path]}, tok, encoding, workers=1)
    rows = Whole(stream=Corpus(tmp_path / "out").stream("a"), length=12, shuffle=False)
    assert rows.epoch == 20
    asked = len(tok.encode("the river"))
    for row in epoch(rows):
        assert row.target is not None
        assert row.keep is not None
        assert len(row.ids) <= 12
        assert (row.ids[-1], row.target[-1], len(row.target)) == (tok.eos_id, tok.eos_id, 12)
        assert row.keep.tolist() == [n >= asked for n in range(len(row.ids))]


def test_loss_masks_follow_their_tokens_into_rows(tmp_path: Path) -> None:
    """Cut and fitted rows keep what was not to be learnt."""
    path = jsonl(tmp_path / "a.jsonl", texts(30), q="the river")
    tokenise(tmp_path / "out", {"a": [path]}, tokenizer(), Encoding(prompt="q"), workers=1)
    stream = Corpus(tmp_path / "out").stream("a")
    learnt = sum(len(tokenizer().encode(text)) + 1 for text in texts(30))
    for rows in (Fit(stream=stream, length=50), Cut(stream=stream, length=stream.tokens)):
        keeps = [row.keep for row in epoch(rows)]
        assert sum(int(keep.sum()) for keep in keeps if keep is not None) == learnt


def test_a_feed_is_rows_or_a_mixture(tmp_path: Path) -> None:
    """By what the folder has and what is asked for; wrong options name the nearest."""
    path = jsonl(tmp_path / "a.jsonl", texts(30))
    tokenise(tmp_path / "1", {"a": [path]}, tokenizer(), workers=1)
    tokenise(tmp_path / "2", {"b": [path], "c": [path]}, tokenizer(), workers=1)
    tokenise(tmp_path / "3", {"d": [path]}, tokenizer("unigram"), workers=1)
    one, two, three = (str(tmp_path / n) for n in "123")
    assert isinstance(feed(FeedOptions(shards=(one,), packing="fit")), Fit)
    mixed = feed(FeedOptions(shards=(one, two), length=16, weights={"a": 1, "b": 3}))
    assert isinstance(mixed, Mixture)
    assert {mixed(n).source for n in range(40)} == {"a", "b"}
    assert isinstance(feed(FeedOptions(shards=(one,), epochs={"a": 2})), Mixture)
    said = [identity(FeedOptions(shards=(s,), seed=n)) for s, n in ((one, 0), (one, 1), (two, 0))]
    assert len(set(said)) == 3
    assert identity(FeedOptions(shards=(one,))) == said[0]
    wrong = {
        "different tokenizers": FeedOptions(shards=(one, three)),
        "one name": FeedOptions(shards=(one, one)),
        "no source": FeedOptions(shards=(one, two), weights={"e": 1}),
        "held-out split": FeedOptions(shards=(one,), split="held-out"),
        "no folder": FeedOptions(shards=()),
        "2 at least": FeedOptions(shards=(one,), length=1),
    }
    for said, options in wrong.items():
        with pytest.raises(KeifuError, match=said):
            feed(options)
