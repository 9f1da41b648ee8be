"""Phi-3 against transformers: fused projections, partial rotary, LongRoPE on both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Phi3Config, Phi3ForCausalLM

from keifu.families.phi3 import Phi3
from tests.families.parity import SMALL, both_ways

SHORT = [1.0, 1.1, 1.3, 1.7]
LONG = [2.0, 3.0, 5.0, 9.0]


def longrope(original: int, partial: float = 1.0) -> dict[str, Any]:
    pairs = int(4 * partial)
    return {
        "max_position_embeddings": 64,
        "original_max_position_embeddings": original,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": SHORT[:pairs],
            "long_factor": LONG[:pairs],
            "partial_rotary_factor": partial,
            "original_max_position_embeddings": original,
        },
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"sliding_window": 4},
    "tied": {"tie_word_embeddings": True},
    "partial": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
        }
    },
    "longrope-within": longrope(32),
    "longrope-beyond": longrope(8),
    "longrope-partial": longrope(8, 0.5),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_parity(option: str, tmp_path: Path) -> None:
    settings = {**SMALL, "pad_token_id": 0, **OPTIONS[option]}
    theirs = Phi3ForCausalLM(Phi3Config(**settings))
    both_ways(Phi3, theirs, tmp_path / "m", by_length=option.startswith("longrope-"))
