"""Models of a few thousand weights: threads that wait for each other only cost."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="module")
def small(one_thread: None) -> None:
    """All of these."""
