"""Memory over segments: a curriculum's batches, the fact that memory keeps, two million tokens."""

from __future__ import annotations

import pytest

from keifu.core.errors import KeifuError
from keifu.nn.state import Fixed
from keifu.training.curriculum import Stage, growing


def test_a_curriculum_grows_and_then_stays() -> None:
    stages = [Stage(size=1, batches=2), Stage(size=2, batches=3), Stage(size=5, batches=1)]
    data = growing(stages, lambda size, number: (size, number))
    expected = [(1, 0), (1, 1), (2, 2), (2, 3), (2, 4), (5, 5), (5, 6), (5, 7)]
    assert [data(number) for number in range(8)] == expected
    for wrong in ([], [Stage(size=0, batches=1)], [Stage(size=1, batches=0)]):
        with pytest.raises(KeifuError, match="a curriculum needs a stage"):
            growing(wrong, lambda size, number: size)


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_memory_is_constant_over_segments(name: str) -> None:
    """The sizes of two million tokens, and thirty-two of the segments."""
    from recipes.two_million_tokens import SEGMENTS, SPECS, read

    spec = SPECS[name]
    assert (spec.memory, spec.segment, SEGMENTS) == (10, 499, 4096)
    assert SEGMENTS * spec.segment == 2_043_904
    special = sum(map(len, spec.around))
    if name == "encoder":
        assert (special, spec.places) == (3, 512)
    assert all(isinstance(e, Fixed) for use in spec.entries() for e in use.values())
    tokens, early, most = read(name, 32)
    assert tokens == 32 * 499
    assert most - early < 16 << 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_two_million_tokens_take_constant_memory(name: str) -> None:
    from recipes.two_million_tokens import read

    tokens, early, most = read(name)
    assert tokens == 2_043_904
    assert most - early < 8 << 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_fact_is_kept_over_twice_the_trained_segments() -> None:
    from recipes.memory_segments import TRAINED, accuracy, trained

    model = trained()
    assert accuracy(model, TRAINED) > 0.99
    assert accuracy(model, 2 * TRAINED) > 0.95
    assert accuracy(model, 2 * TRAINED, forget=True) < 0.3  # chance is 0.125
