"""GPT-NeoX and its Japanese relative against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXJapaneseConfig,
    GPTNeoXJapaneseForCausalLM,
)

from keifu.core.errors import ConfigError
from keifu.families.gpt_neox import GPTNeoX
from keifu.families.gpt_neox_japanese import GPTNeoXJapanese
from tests.families.parity import SMALL, both_ways

SIZES = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}


def rope(share: float, **more: Any) -> dict[str, Any]:
    kind = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": share}
    return {"rope_parameters": {**kind, **more}}


OPTIONS: dict[str, dict[str, Any]] = {
    "parallel": rope(0.5),
    "sequential": {"use_parallel_residual": False, **rope(1.0)},
    "no-bias": {"attention_bias": False, "hidden_act": "gelu_new", **rope(0.5)},
    "tied-linear": {"tie_word_embeddings": True, **rope(0.5, rope_type="linear", factor=4.0)},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_parity(option: str, tmp_path: Path) -> None:
    theirs = GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, **OPTIONS[option]))
    both_ways(GPTNeoX, theirs, tmp_path / "m", saved=True)


@pytest.mark.parametrize(("share", "multiple"), [(1.0, 2), (0.5, 4)])
def test_japanese_parity(share: float, multiple: int, tmp_path: Path) -> None:
    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    config = GPTNeoXJapaneseConfig(**sizes, **rope(share), intermediate_multiple_size=multiple)
    both_ways(GPTNeoXJapanese, GPTNeoXJapaneseForCausalLM(config), tmp_path / "m")


def test_older_spellings_are_understood_and_may_not_contradict() -> None:
    old = GPTNeoX.from_hf({"rotary_pct": 1.0, "rotary_emb_base": 20000})
    assert (old.rotary, old.rope_base) == (1.0, 20000.0)
    with pytest.raises(ConfigError, match=r"rotary_pct=1\.0 contradicts partial_rotary_factor"):
        GPTNeoX.from_hf({"rotary_pct": 1.0, "partial_rotary_factor": 0.25})
