"""StableLM against transformers, version 2's options included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import StableLmConfig, StableLmForCausalLM

from keifu.families.stablelm import StableLM
from tests.families.parity import SMALL, both_ways

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "version-2": {"use_qkv_bias": True, "qk_layernorm": True},
    "parallel": {"use_parallel_residual": True},
    "half-turns": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
        },
        "tie_word_embeddings": True,
    },
}


@pytest.mark.parametrize("option", OPTIONS)
def test_parity(option: str, tmp_path: Path) -> None:
    theirs = StableLmForCausalLM(StableLmConfig(**{**SMALL, **OPTIONS[option]}))
    both_ways(StableLM, theirs, tmp_path / "m")
