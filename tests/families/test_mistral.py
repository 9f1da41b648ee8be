"""Mistral against transformers: windows shorter than the sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import MistralConfig, MistralForCausalLM

from keifu.families.mistral import Mistral
from tests.families.parity import SMALL, both_ways

OPTIONS: dict[str, dict[str, Any]] = {
    "window": {"sliding_window": 4},
    "no-window": {"sliding_window": None},
    "long-window": {"sliding_window": 40},
    "heads": {"sliding_window": 5, "num_key_value_heads": 4, "head_dim": 16},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_parity(option: str, tmp_path: Path) -> None:
    theirs = MistralForCausalLM(MistralConfig(**{**SMALL, **OPTIONS[option]}))
    both_ways(Mistral, theirs, tmp_path / "m")
