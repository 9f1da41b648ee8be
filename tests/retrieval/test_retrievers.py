"""The two retrievers: BM25 against its formula by hand, cosines against numpy's."""

from __future__ import annotations

import math

import pytest

from keifu.core.errors import KeifuError
from keifu.lm.scripted import ScriptedLM
from keifu.retrieval.dense import Dense
from keifu.retrieval.lexical import Lexical, match, terms
from keifu.retrieval.retriever import Retriever

TEXTS = ["the cat sat", "a dog and a cat and a bird", "nothing of the kind", "dog"]


def test_bm25_is_the_formula() -> None:
    """Robertson & Zaragoza 2009, eq. 3.15, with idf ln((N - n + 0.5) / (n + 0.5))."""
    lexical = Lexical()
    lexical.add(TEXTS[:2])
    lexical.add([*TEXTS[2:], "one more", "and another"])
    lengths = [3, 8, 4, 1, 2, 2]
    mean = sum(lengths) / len(lengths)

    def score(count: int, length: int, holders: int) -> float:
        idf = math.log((6 - holders + 0.5) / (holders + 0.5))
        return idf * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / mean))

    hits = lexical.search("DOG?", 10)
    assert [hit.index for hit in hits] == [3, 1]
    assert hits[0].score == pytest.approx(score(1, 1, 2))
    assert hits[1].score == pytest.approx(score(1, 8, 2))
    assert hits[0].text == "dog"
    assert [hit.index for hit in lexical.search("dog bird", 1)] == [1]
    assert lexical.search("unheard", 3) == lexical.search("?!", 3) == []


def test_words_of_scripts_without_spaces() -> None:
    assert terms("系譜は木です2番 Ab") == ["系譜", "譜は", "は木", "木で", "です", "2", "番", "ab"]
    lexical = Lexical()
    lexical.add(["言語モデルの系譜", "猫が好きです", "boxes of tea"])
    assert [hit.index for hit in lexical.search("系譜とは何か", 3)] == [0]
    assert [hit.index for hit in lexical.search("a box", 3)] == [2]


def test_a_query_is_words_and_no_syntax() -> None:
    assert match('cat" OR 1 NEAR(') == '"cat" OR "or" OR "1" OR "near"'
    lexical = Lexical()
    lexical.add(["cat"])
    assert [hit.text for hit in lexical.search('"cat* AND ("', 2)] == ["cat"]


def test_dense_is_the_cosine() -> None:
    vectors = {"x": [3.0, 0.0], "y": [0.0, 0.5], "z": [1.0, 1.0], "q": [2.0, 1.0]}
    lm = ScriptedLM(embeddings=vectors)
    dense: Retriever = Dense(lm.embed)
    assert dense.search("q", 3) == []
    dense.add(["x", "y"])
    dense.add(["z"])
    hits = dense.search("q", 2)
    assert [(hit.index, hit.text) for hit in hits] == [(2, "z"), (0, "x")]
    assert hits[0].score == pytest.approx(3 / math.sqrt(10))
    assert hits[1].score == pytest.approx(2 / math.sqrt(5))
    with pytest.raises(KeifuError, match="no numbers"):
        Dense(lambda texts: [[float("nan")]]).add(["x"])
