"""Phi-1.5 and Phi-2 against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PhiConfig, PhiForCausalLM

from keifu.families.phi import Phi
from tests.families.parity import SMALL, both_ways
from tests.families.test_gpt_neox import rope

OPTIONS: dict[str, dict[str, Any]] = {
    "grouped": rope(0.5),
    "all-heads": {"num_key_value_heads": 4, **rope(0.25)},
    "normed-queries": {"qk_layernorm": True, **rope(1.0, rope_theta=1e5)},
    "tied-dynamic": {"tie_word_embeddings": True, "hidden_act": "relu",
                     **rope(0.5, rope_type="linear", factor=2.0)},
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_parity(option: str, tmp_path: Path) -> None:
    theirs = PhiForCausalLM(PhiConfig(**{**SMALL, **OPTIONS[option]}))
    both_ways(Phi, theirs, tmp_path / "m")
