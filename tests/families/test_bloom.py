"""BLOOM against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BloomConfig, BloomForCausalLM

from keifu.core.errors import ConfigError
from keifu.families.bloom import Bloom
from tests.families.parity import both_ways


@pytest.mark.parametrize(("heads", "tied"), [(4, True), (3, False)])
def test_parity(heads: int, tied: bool, tmp_path: Path) -> None:
    config = BloomConfig(
        vocab_size=96, hidden_size=8 * heads, n_layer=2, n_head=heads, tie_word_embeddings=tied
    )
    both_ways(Bloom, BloomForCausalLM(config), tmp_path / "m")


def test_older_spellings_and_an_option_that_is_refused() -> None:
    family = Bloom.from_hf({"n_embed": 1024, "num_attention_heads": 16, "n_layer": 24})
    assert (family.width, family.heads) == (1024, 16)
    with pytest.raises(ConfigError, match="apply_residual_connection_post_layernorm=True"):
        Bloom.from_hf({"apply_residual_connection_post_layernorm": True})
