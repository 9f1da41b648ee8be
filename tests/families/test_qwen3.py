"""Qwen 3 against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen3Config, Qwen3ForCausalLM

from keifu.families.qwen3 import Qwen3
from tests.families.parity import SMALL, both_ways

OPTIONS: list[dict[str, Any]] = [
    {},
    {"head_dim": 16, "attention_bias": True},
    {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 4,
     "max_window_layers": 1},
]  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_parity(option: dict[str, Any], tmp_path: Path) -> None:
    theirs = Qwen3ForCausalLM(Qwen3Config(**{**SMALL, "head_dim": 8, **option}))
    both_ways(Qwen3, theirs, tmp_path / "m")
