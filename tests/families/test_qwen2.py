"""Qwen 2 against transformers: biases, and upper layers that slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM

from keifu.families.qwen2 import Qwen2
from tests.families.parity import SMALL, both_ways

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "sliding": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_parity(option: str, tmp_path: Path) -> None:
    theirs = Qwen2ForCausalLM(Qwen2Config(**{**SMALL, **OPTIONS[option]}))
    both_ways(Qwen2, theirs, tmp_path / "m")


def test_the_older_switch_without_layer_types() -> None:
    old = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    read = Qwen2.from_hf({"num_hidden_layers": 4, **old})
    assert read.local == (False, False, True, True)
    assert not any(
        Qwen2.from_hf({**old, "num_hidden_layers": 4, "use_sliding_window": False}).local
    )
