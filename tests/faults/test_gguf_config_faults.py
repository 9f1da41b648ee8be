"""GGUF files whose metadata cannot be true (D2 row 6): one ConfigError that names the key."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from keifu.cli.main import main
from keifu.core.errors import ConfigError, KeifuError
from keifu.families import load_model
from keifu.families._load import open_checkpoint
from tests.gguf_builder import dense, tiny_llama, tiny_llama_metadata

TOKENS = tiny_llama_metadata()["tokenizer.ggml.tokens"]
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no heads": ({"llama.attention.head_count": 0}, "llama.attention.head_count=0"),
    "heads of another kind": ({"llama.attention.head_count": 4.0}, "attention.head_count=4.0"),
    "heads as a word": ({"llama.attention.head_count": "4"}, "attention.head_count='4'"),
    "a billion heads": ({"llama.attention.head_count": 2**30}, "attention.head_count=1073741824"),
    "heads do not divide the width": ({"llama.attention.head_count": 3}, "attention.head_count"),
    "key heads do not divide": ({"llama.attention.head_count_kv": 3}, "head_count_kv=3"),
    "more key heads than heads": ({"llama.attention.head_count_kv": 8}, "head_count_kv=8"),
    "no key heads": ({"llama.attention.head_count_kv": 0}, "head_count_kv=0"),
    "key heads by layer": (
        {"llama.attention.head_count_kv": [2, 4]},
        "head_count_kv differs by layer",
    ),
    "an empty list": ({"llama.feed_forward_length": [0, 0]}, "llama.feed_forward_length=0"),
    "no context": ({"llama.context_length": 0}, "llama.context_length=0"),
    "no layers": ({"llama.block_count": 0}, "llama.block_count=0"),
    "a million layers": ({"llama.block_count": 10**6}, "llama.block_count=1000000"),
    "no width": ({"llama.embedding_length": 0}, "llama.embedding_length=0"),
    "another width": ({"llama.embedding_length": 128}, "llama.embedding_length=128"),
    "base not a number": ({"llama.rope.freq_base": math.nan}, "llama.rope.freq_base=nan"),
    "base infinite": ({"llama.rope.freq_base": math.inf}, "llama.rope.freq_base=inf"),
    "base 0": ({"llama.rope.freq_base": 0.0}, "llama.rope.freq_base=0.0"),
    "eps not a number": (
        {"llama.attention.layer_norm_rms_epsilon": math.nan},
        "llama.attention.layer_norm_rms_epsilon=nan",
    ),
    "turns more than there is": ({"llama.rope.dimension_count": 32}, "rope.dimension_count=32"),
    "turns an odd number": ({"llama.rope.dimension_count": 7}, "rope.dimension_count=7"),
    "turns a part": ({"llama.rope.dimension_count": 8}, "partial_rotary_factor=0.5"),
    "unknown scaling": ({"llama.rope.scaling.type": "magic"}, "rope.scaling.type='magic'"),
    "scaling without factor": ({"llama.rope.scaling.type": "linear"}, "factor is missing"),
    "scaling by nothing": (
        {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": math.nan},
        "llama.rope.scaling.factor=nan",
    ),
    "values of another width": ({"llama.attention.value_length": 8}, "attention.value_length=8"),
    "fewer tokens": ({"tokenizer.ggml.tokens": TOKENS[:-1]}, "tokenizer.ggml.tokens has 258"),
    "more tokens": ({"tokenizer.ggml.tokens": [*TOKENS, "x"]}, "tokenizer.ggml.tokens has 260"),
    "another vocabulary": ({"llama.vocab_size": 300}, "llama.vocab_size=300"),
    "an unknown key": ({"llama.residual_multiplier": 8}, "llama.residual_multiplier"),
    "no architecture": ({"general.architecture": None}, "lacks general.architecture"),
    "architecture a number": ({"general.architecture": 7}, "lacks general.architecture"),
    **{
        f"no {key}": ({f"llama.{key}": None}, f"llama.{key} is missing")
        for key in (
            *("block_count", "context_length", "embedding_length", "feed_forward_length"),
            *("attention.head_count", "attention.layer_norm_rms_epsilon"),
        )
    },
}


@pytest.mark.parametrize("case", BAD)
def test_refused_by_name(case: str, tmp_path: Path) -> None:
    changes, words = BAD[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_llama(changes))
    with pytest.raises(ConfigError) as error:
        open_checkpoint(path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    path.write_bytes(tiny_llama())  # the next good file opens
    assert open_checkpoint(path).family_name == "llama"


def test_unknown_architecture_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_llama({"general.architecture": "lama"}))
    with pytest.raises(KeifuError, match="no GGUF architecture 'lama'; nearest: llama"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("tensor", "values", "words"),
    [
        ("rope_freqs.weight", np.ones(4), "rope_freqs.weight has shape"),
        ("rope_freqs.weight", np.full(8, np.nan), "rope_freqs.weight has values"),
        ("rope_freqs.weight", np.zeros(8), "rope_freqs.weight has values"),
        ("rope_factors_long.weight", np.ones(8), "only one of"),
    ],
)
def test_factors_that_cannot_be(tensor: str, values: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_llama(tensors={tensor: dense(values)}))
    with pytest.raises(ConfigError, match=words):
        open_checkpoint(path)


def test_a_token_that_is_not_utf_8_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tokens = [token.encode() for token in TOKENS]
    tokens[257] = b"\xff\xfe"
    merges = ["h e"]
    path.write_bytes(tiny_llama({"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges}))
    model, tokenizer = load_model(path)
    ids = tokenizer.encode("hehe")
    assert ids == [256, 256]
    logits = model(torch.tensor(ids)).logits
    assert logits is not None
    assert logits.shape == (2, 259)


def test_the_command_line_says_it_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        said = _complete(tmp_path, capsys)
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "llama.attention.head_count=0 is not allowed" in said.err


def _complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_llama({"llama.attention.head_count": 0}))
    assert main(["complete", "-m", str(path), "--max-tokens", "1", "hi"]) == 1
    return capsys.readouterr()
