"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ("tests.proofs",)

SLOW = 1800
"""Seconds that a slow test may take, on a machine that others use too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests have a longer limit."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch with one thread: several only wait for each other on tensors as small as tests'."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The default model's GGUF file (SmolLM2-135M-Instruct, Q4_1), pulled once and then cached."""
    from keifu.checkpoints.store import pull

    return pull("smollm2-135m")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2's folder, pulled once and then cached."""
    from keifu.checkpoints.store import pull

    return pull("minilm-l6-v2")
