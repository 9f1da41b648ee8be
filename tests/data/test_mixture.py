"""Mixtures: proportions by chi-square, items one after another, limits and stages exact."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from keifu.core.errors import KeifuError
from keifu.data.example import Example, Listed
from keifu.data.mixture import BLOCK, Mixture, Part, Stage, shares


def part(name: str, items: int, mean: int = 1, **more: float | None) -> Part:
    """A source whose examples say their number."""
    examples = Listed(items=[Example.of([n]) for n in range(items)], shuffle=False)
    return Part(name=name, examples=examples, tokens=items * mean, **more)


def drawn(mixture: Mixture, count: int) -> list[tuple[int, int]]:
    """Where the first examples come from."""
    return [mixture.where(n) for n in range(count)]


@pytest.mark.parametrize("count", [1000, 20_000, 150_000])
def test_proportions_are_the_weights(count: int) -> None:
    """Chi-square of the sources drawn, and of what stands at every second place, p > 0.01."""
    weights = [0.5, 0.3, 0.15, 0.05]
    mixture = Mixture([part(f"s{n}", 50, weight=w) for n, w in enumerate(weights)], seed=4)
    found = np.array([source for source, _ in drawn(mixture, count)])
    for some in (found, found[::2], found[: count // 3]):
        counts = np.bincount(some, minlength=4)
        assert stats.chisquare(counts, np.array(weights) * len(some)).pvalue > 0.01


def test_neighbours_are_independent() -> None:
    """Which source follows which is as chance has it."""
    mixture = Mixture([part("a", 9, weight=2), part("b", 9, weight=1)])
    found = np.array([source for source, _ in drawn(mixture, 30_000)])
    pairs = np.bincount(2 * found[:-1] + found[1:], minlength=4)
    share = np.array([4, 2, 2, 1]) / 9
    assert stats.chisquare(pairs, share * pairs.sum()).pvalue > 0.01


def test_a_mixture_is_a_function_of_seed_and_number() -> None:
    """Asked in any order, by another object; another seed is another order."""
    parts = [part("a", 100, weight=3), part("b", 100, weight=1)]
    numbers = np.random.default_rng(0).integers(0, 5 * BLOCK, 200).tolist()
    one, other = Mixture(parts, seed=1), Mixture(parts, seed=1)
    assert [one.where(n) for n in sorted(numbers)] == [other.where(n) for n in sorted(numbers)]
    assert {n: one.where(n) for n in numbers} == {n: other.where(n) for n in reversed(numbers)}
    assert drawn(one, 50) != drawn(Mixture(parts, seed=2), 50)
    example = one(numbers[0])
    assert example.source == ("a", "b")[one.where(numbers[0])[0]]


def test_items_of_a_source_come_one_after_another() -> None:
    """Over blocks: none twice, none left out, so that epochs are a source's own."""
    mixture = Mixture([part("a", 7, weight=5), part("b", 9, weight=2), part("c", 3, weight=1)])
    count = 2 * BLOCK + 777
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for source, item in drawn(mixture, count):
        seen[source].append(item)
    assert all(items == list(range(len(items))) for items in seen.values())
    assert mixture.taken(count) == tuple(len(items) for items in seen.values())


def test_weights_are_shares_of_tokens() -> None:
    """Examples of ten tokens are drawn a tenth as often; the report says tokens."""
    mixture = Mixture([part("long", 1000, mean=10, weight=1), part("short", 1000, weight=1)])
    taken = mixture.taken(11 * 1000)
    assert taken[1] / taken[0] == pytest.approx(10, rel=0.05)
    told = {one.name: one for one in mixture.report(BLOCK)}
    assert told["long"].share == pytest.approx(0.5, abs=1e-3)
    assert told["short"].epochs == told["short"].examples / 1000
    assert told["long"].tokens == 10 * told["long"].examples


def test_temperature_is_a_power_of_sizes() -> None:
    """p proportional to size^(1/T): 1 is by size, 5 is flatter, large is equal."""
    parts = [part("a", 1000), part("b", 10)]
    for temperature in (1.0, 5.0, 1e9):
        expected = np.array([1000, 10]) ** (1 / temperature)
        taken = np.array(Mixture(parts, temperature=temperature).taken(BLOCK))
        assert taken / BLOCK == pytest.approx(expected / expected.sum(), abs=1e-4)


def test_a_source_rests_when_it_was_seen_as_often_as_it_may() -> None:
    """To the example; the others share its place; the run ends when all are used up."""
    mixture = Mixture(
        [part("a", 10, weight=1, epochs=2.5), part("b", 40, weight=1, epochs=2)], seed=3
    )
    assert mixture.length == mixture.epoch == 25 + 80
    counts = Counter(drawn(mixture, 105))
    assert counts == Counter([(0, n) for n in range(25)] + [(1, n) for n in range(80)])
    with pytest.raises(KeifuError, match="end after 105"):
        mixture.where(105)
    endless = Mixture([part("a", 10, weight=9, epochs=1), part("b", 5, weight=1)])
    assert endless.length is None
    assert endless.taken(1000) == (10, 990)


def test_stages_follow_each_other_exactly() -> None:
    """Weights change at their examples; items go on where they were; names may rest."""
    stages = [
        Stage(examples=100, weights={"a": 1}),
        Stage(examples=BLOCK + 50, weights={"a": 1, "b": 1}),
        Stage(examples=None, weights={"b": 1}),
    ]
    mixture = Mixture([part("a", 30), part("b", 30)], stages=stages)
    found = drawn(mixture, 2 * BLOCK)
    assert {source for source, _ in found[:100]} == {0}
    middle = np.array([source for source, _ in found[100 : BLOCK + 150]])
    assert stats.chisquare(np.bincount(middle)).pvalue > 0.01
    assert {source for source, _ in found[BLOCK + 150 :]} == {1}
    for source in (0, 1):
        items = [item for one, item in found if one == source]
        assert items == list(range(len(items)))
    ended = Mixture([part("a", 30)], stages=[Stage(examples=7, weights={"a": 1})])
    assert ended.length == 7


def test_a_block_is_divided_to_the_last_place() -> None:
    """Largest remainders; a tiny weight still has one place."""
    assert sum(shares([1, 1, 1])) == BLOCK
    assert max(shares([1, 1, 1])) - min(shares([1, 1, 1])) == 1
    assert shares([1e-9, 1.0]) == (1, BLOCK - 1)
    assert shares([0.0, 2.0, 2.0]) == (0, BLOCK // 2, BLOCK // 2)
    assert sum(shares([1e-9] * 50 + [1.0, 0.3])) == BLOCK


def test_what_means_nothing_is_refused() -> None:
    """One line each."""
    parts = [part("a", 5, weight=1), part("b", 5, weight=1)]
    wrong = {
        "different names": ([parts[0], parts[0]], {}),
        "above 0": (parts, {"temperature": 0.0}),
        "for all": ([parts[0], part("c", 5)], {}),
        "no source": (parts, {"stages": [Stage(examples=None, weights={"d": 1})]}),
        "is 0": (parts, {"stages": [Stage(examples=None, weights={"a": 0})]}),
        "means nothing": (parts, {"stages": [Stage(examples=None, weights={"a": -1})]}),
        "1 or more": (parts, {"stages": [Stage(examples=0, weights={"a": 1})]}),
    }
    for said, (given, more) in wrong.items():
        with pytest.raises(KeifuError, match=said):
            Mixture(given, **more)  # type: ignore[arg-type]
