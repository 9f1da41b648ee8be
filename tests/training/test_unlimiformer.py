"""Retrieval reads facts far beyond the encoder's length, cutting does not (a minute or more)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from recipes.unlimiformer import CONTEXT, KEYS, VALUES, example, learn, right, words


def test_facts_lie_anywhere_in_the_source() -> None:
    made = random.Random(3)
    places = set()
    for _ in range(100):
        source, target = example(400, made)
        ids, said = source.split(), target.split()
        assert len(words().encode(source)) == 400
        for key, value in zip(said[::2], said[1::2], strict=True):
            at = ids.index(key)
            assert ids.count(key) == 1
            assert ids[at + 1] == value
            assert value in VALUES
            places.add(at // 100)
        assert said[::2] == list(KEYS)
    assert places == {0, 1, 2, 3}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_facts_are_found_in_sources_a_hundred_times_longer(tmp_path: Path) -> None:
    folder = learn(tmp_path / "facts")
    assert right(folder, CONTEXT, retrieve=None) > 0.98
    assert right(folder, 4096, retrieve=16) > 0.9
    assert right(folder, 4096, retrieve=None) < 0.25
