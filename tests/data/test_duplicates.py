"""Duplicates: MinHash beside exact sets and `datasketch`, SimHash, Bloom filters, ROUGE-L."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path

import numpy as np
import pytest

from keifu.core.errors import KeifuError
from keifu.data.bloom import Bloom
from keifu.data.document import Document, Dropped
from keifu.data.pipeline import Pipeline
from keifu.data.shingles import shingles, words
from keifu.data.step import Step
from keifu.data.steps.exact import Exact
from keifu.data.steps.minhash import MinHash, bands_for, signature
from keifu.data.steps.novelty import Novelty, rouge_l
from keifu.data.steps.simhash import SimHash, simhash
from tests.data import corpus


def through(step: Step, texts: list[str]) -> list[Document | Dropped]:
    return list(Pipeline(steps=[step]).clean(Document(text) for text in texts))


def grams(text: str, n: int) -> set[str]:
    """Shingles by the definition, with strings."""
    found = re.findall(r"\w+", text.lower())
    return {" ".join(found[i : i + n]) for i in range(max(1, len(found) - n + 1))}


def pairs() -> list[tuple[str, str, float]]:
    """Texts with every similarity from 0 to 1, and their exact Jaccard of 3-grams."""
    found = []
    for seed in range(24):
        rng = random.Random(seed)
        text = corpus.prose(seed, 20).split(" ")
        other = [f"w{rng.random()}" if rng.random() < seed / 100 else word for word in text]
        left, right = " ".join(text), " ".join(other)
        a, b = grams(left, 3), grams(right, 3)
        found.append((left, right, len(a & b) / len(a | b)))
    assert min(s for *_, s in found) < 0.4
    assert max(s for *_, s in found) == 1
    return found


def test_minhash_estimates_jaccard() -> None:
    """Within 0.05 of the exact value and of datasketch's estimate, with 2048 orders each; with the
    usual 128, on average."""
    from datasketch import MinHash as Theirs

    few = []
    for n, (left, right, exact) in enumerate(pairs()):
        mine = [signature(shingles(words(t).hashes, 3), 2048) for t in (left, right)]
        estimate = float((mine[0] == mine[1]).mean())
        assert abs(estimate - exact) < 0.05
        short = [signature(shingles(words(t).hashes, 3), 128) for t in (left, right)]
        few.append(float((short[0] == short[1]).mean()) - exact)
        if n % 6 == 0:
            theirs = [Theirs(num_perm=2048) for _ in range(2)]
            for sketch, text in zip(theirs, (left, right), strict=True):
                sketch.update_batch([gram.encode() for gram in grams(text, 3)])
            assert abs(estimate - theirs[0].jaccard(theirs[1])) < 0.05
    assert abs(float(np.mean(few))) < 0.02
    assert float(np.std(few)) < 0.05  # sqrt(s (1 - s) / 128) is at most 0.044


def test_bands_are_those_of_datasketch() -> None:
    from datasketch.lsh import _optimal_param

    for threshold in (0.5, 0.7, 0.8, 0.9):
        bands, rows = bands_for(threshold, 128)
        theirs = _optimal_param(threshold, 128, 0.5, 0.5)

        def wrong(bands: int, rows: int, threshold: float = threshold) -> float:
            s = (np.arange(100_000) + 0.5) / 100_000
            caught = 1 - (1 - s**rows) ** bands
            return float(np.where(s < threshold, caught, 1 - caught).mean())

        assert wrong(bands, rows) <= wrong(*theirs) + 1e-4


@pytest.mark.parametrize("step", [MinHash(), MinHash(bloom=1000)])
def test_near_duplicates_go(step: Step) -> None:
    clean = [corpus.prose(seed) for seed in range(60)]
    near = [corpus.altered(text, seed) for seed, text in enumerate(clean)]
    assert all(a != b for a, b in zip(clean, near, strict=True))
    found = through(step, clean + near)
    assert all(isinstance(d, Document) for d in found[:60])
    assert sum(isinstance(d, Dropped) for d in found[60:]) >= 57
    assert_no_words(step)


def assert_no_words(step: Step) -> None:
    """Texts without words are like no other."""
    assert through(step, ["", "", "...", "!!!"]) == [Document(t) for t in ("", "", "...", "!!!")]


def test_simhash_finds_what_differs_in_a_word() -> None:
    rng = random.Random(0)
    clean = [
        [f"{rng.choice(corpus.WORDS)}{rng.randrange(99)}" for _ in range(300)] for _ in "x" * 60
    ]
    near = [["otherwise" if at == seed else w for at, w in enumerate(text)]
            for seed, text in enumerate(clean)]  # fmt: skip
    found = through(SimHash(distance=7), [" ".join(text) for text in clean + near])
    assert all(isinstance(d, Document) for d in found[:60])
    assert sum(isinstance(d, Dropped) for d in found[60:]) >= 54
    assert_no_words(SimHash())


def test_minhash_says_of_what() -> None:
    text = corpus.prose(1)
    _, _, dropped = through(MinHash(), [corpus.prose(2), text, text + " Indeed."])
    assert isinstance(dropped, Dropped)
    assert re.fullmatch(r"of document 2, about (0\.9\d|1\.00)", dropped.detail)


def test_a_shingle_s_number_follows_from_its_words_alone() -> None:
    """Equal words have equal numbers wherever they stand; different ones have different numbers."""
    text = "The river, the RIVER; a stone?\nDer Fluß über naïve 日本語の文 ไทย हिन्दी 𠀀 "
    text += "İstanbul 42 don't"
    found = words(text)
    spelt = [found.text[a:b] for a, b in zip(found.starts, found.ends, strict=True)]
    assert spelt == [
        "the", "river", "the", "river", "a", "stone", "der", "fluß", "über", "naïve",
        *"日本語の文", *"ไทย", "हिन्दी", "𠀀", "İstanbul", "42", "don", "t",
    ]  # fmt: skip
    assert len(found.text) == len(text)
    by_word: dict[str, int] = {}
    for word, number in zip(spelt, found.hashes.tolist(), strict=True):
        assert by_word.setdefault(word, number) == number
    assert len(set(by_word.values())) == len(by_word)
    one, other = words("zero a b c"), words("a b c")
    assert shingles(one.hashes, 3)[1] == shingles(other.hashes, 3)[0]
    assert len(shingles(other.hashes, 9)) == 1
    assert len(shingles(words("").hashes, 3)) == 0


def test_long_texts_are_cut_between_words() -> None:
    text = " ".join(f"word{n}" for n in range(250_000))
    found = words(text)
    assert len(found.starts) == 250_000
    assert len(set(found.hashes.tolist())) == 250_000
    assert found.hashes[-1] == words("word249999").hashes[0]
    assert text[found.starts[200_000] : found.ends[200_000]] == "word200000"


def test_simhash_is_the_sign_of_the_sum() -> None:
    text = corpus.prose(3)
    numbers = shingles(words(text).hashes, 3).tolist()
    expected = 0
    for bit in range(64):
        if sum(1 if number >> bit & 1 else -1 for number in numbers) > 0:
            expected |= 1 << bit
    assert simhash(text) == expected


def test_bloom() -> None:
    """No number is forgotten; false yeses are as rare as asked for."""
    rng = random.Random(0)
    drawn = [rng.getrandbits(64) for _ in range(40_000)]
    filter = Bloom(20_000, 0.01)
    new = sum(not filter.add(number) for number in drawn[:20_000])
    assert new > 19_800
    assert all(number in filter for number in drawn[:20_000])
    wrong = sum(number in filter for number in drawn[20_000:])
    assert 100 < wrong < 300  # 200 +- 14
    assert filter.bits == pytest.approx(191_702, abs=1)  # -n ln p / (ln 2)^2
    assert filter.hashes == 7
    with pytest.raises(KeifuError):
        Bloom(0)


def test_exact() -> None:
    texts = ["One  two.", "one TWO.\n", "one three", "One  two."]
    kept = [isinstance(d, Document) for d in through(Exact(), texts)]
    assert kept == [True, False, True, False]
    kept = [isinstance(d, Document) for d in through(Exact(loose=False), texts)]
    assert kept == [True, True, True, False]
    kept = [isinstance(d, Document) for d in through(Exact(bloom=100), texts)]
    assert kept == [True, False, True, False]


def test_rouge_l_is_that_of_rouge_score() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer, rng = RougeScorer(["rougeL"], use_stemmer=False), random.Random(0)
    texts = [" ".join(rng.choices("a b c d e f g".split(), k=rng.randrange(1, 90)))
             for _ in range(30)]  # fmt: skip
    for left, right in itertools.pairwise(texts):
        expected = scorer.score(left, right)["rougeL"].fmeasure
        assert rouge_l(left.split(), right.split()) == pytest.approx(expected, abs=1e-12)


def test_novelty() -> None:
    """Self-Instruct's filter beside its published one-liner, on instructions that are alike."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer, rng = RougeScorer(["rougeL"], use_stemmer=False), random.Random(1)
    base = ["Write a poem about the %s and the %s, in %s lines.", "Name %s rivers of %s, and %s."]
    texts = [rng.choice(base) % tuple(rng.sample(corpus.WORDS, 3)) for _ in range(60)]
    pool: list[str] = []
    expected = []
    for text in texts:
        new = all(scorer.score(text, other)["rougeL"].fmeasure < 0.7 for other in pool)
        expected.append(new)
        pool += [text] * new
    assert 0 < sum(expected) < 60
    assert [isinstance(d, Document) for d in through(Novelty(), texts)] == expected


def test_options_are_checked() -> None:
    for wrong in ({"threshold": 1.0}, {"permutations": 0}, {"words": 0}):
        with pytest.raises(KeifuError):
            MinHash(**wrong)
    with pytest.raises(KeifuError):
        SimHash(distance=16)


def test_places_of_real_files(tmp_path: Path) -> None:
    """A copied file of the standard library is found, whatever it is called."""
    import json as module

    text = Path(module.__file__).read_text()
    found = through(MinHash(), [text, text.replace("JSON", "json", 3)])
    assert isinstance(found[1], Dropped)
