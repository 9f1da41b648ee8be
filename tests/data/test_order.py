"""Orders that are formulas: permutations, uniform, the same one by one and many at a time."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from keifu.core.errors import KeifuError
from keifu.data.example import Example, Listed
from keifu.data.order import Permutation, mixed


def test_mixed_is_splitmix64() -> None:
    """The first outputs of the generator with seed 0, as its authors print them."""
    gamma = 0x9E3779B97F4A7C15
    assert [mixed(n * gamma) for n in range(2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 97, 1000])
def test_every_thing_comes_once(size: int) -> None:
    """And an order is the same one by one."""
    for seed, epoch in itertools.product(range(3), range(3)):
        order = Permutation(size=size, seed=seed, epoch=epoch)
        found = order.many(np.arange(size))
        assert sorted(found.tolist()) == list(range(size))
        assert [order(n) for n in range(size)] == found.tolist()


def test_large_sizes_have_orders_at_once() -> None:
    """Beyond 2^53, where floats would round; one by one as many."""
    size = 2**60 + 12345
    order = Permutation(size=size, seed=7)
    places = [0, 1, 2**59, size - 1]
    assert order.many(np.array(places)).tolist() == [order(p) for p in places]
    assert len({order(p) for p in range(2000)}) == 2000
    with pytest.raises(KeifuError, match="place"):
        order(size)


def test_orders_of_four_are_uniform() -> None:
    """Each of the 24 permutations is as likely as any other."""
    counts = Counter(
        tuple(Permutation(size=4, seed=seed).many(np.arange(4)).tolist()) for seed in range(6000)
    )
    assert stats.chisquare([counts[p] for p in itertools.permutations(range(4))]).pvalue > 0.01


def test_every_place_gets_everything() -> None:
    """Over epochs, what stands first, and what follows it, is uniform."""
    size = 30
    orders = [Permutation(size=size, seed=1, epoch=e).many(np.arange(size)) for e in range(3000)]
    for at in (0, 7, 29):
        counts = np.bincount([order[at] for order in orders], minlength=size)
        assert stats.chisquare(counts).pvalue > 0.001
    steps = np.concatenate([np.diff(order) % size for order in orders])
    assert stats.chisquare(np.bincount(steps, minlength=size)[1:]).pvalue > 0.001


def test_listed_examples_come_epoch_after_epoch() -> None:
    """Each epoch all of them, in another order; the same when asked again."""
    examples = Listed(items=[Example.of([n]) for n in range(10)], seed=3)
    epochs = [[int(examples(e * 10 + n).ids[0]) for n in range(10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert int(examples(17).ids[0]) == epochs[1][7]
    assert examples.epoch == 10


def test_wrong_examples_are_refused() -> None:
    """Pieces that do not fit, a mask of another length."""
    ids = np.arange(4)
    with pytest.raises(KeifuError, match="pieces"):
        Example(ids=ids, pieces=(1, 2))
    with pytest.raises(KeifuError, match="mask"):
        Example(ids=ids, keep=np.ones(3, bool))
    with pytest.raises(KeifuError, match="no examples"):
        Listed(items=[])
