"""GGUF architectures of GPT-2's successors: our files in our reader and in transformers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from keifu.checkpoints.gguf import GGUFFile, write_gguf
from keifu.core.errors import ConfigError
from keifu.families import Family, families
from keifu.families._gguf import arch_for
from keifu.families._gguf_gpt import GPT_ARCHS
from keifu.families._load import build_model, open_checkpoint
from keifu.nn.rotary import LinearScaling
from keifu.nn.stack import StackModule
from tests.families.parity import tokens
from tests.families.test_gguf import write

PUBLISHED: dict[str, Any] = {"hidden": None, "context": 1024, "vocab": 50257}
"""What transformers takes for granted of a GPT-2."""
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt-2", {}),
    "gpt2-published": ("gpt-2", PUBLISHED),
    "gpt2-untied": ("gpt-2", {**PUBLISHED, "tied": False}),
    "gptj": ("gpt-j", {}),
    "gptj-tied": ("gpt-j", {"tied": True}),
    "gptneox": ("gpt-neox", {}),
    "gptneox-sequential": (
        "gpt-neox",
        {"parallel": False, "attention_bias": False, "scaling": LinearScaling(4.0), "tied": True},
    ),
    "bloom": ("bloom", {}),
    "bloom-three": ("bloom", {"heads": 3, "width": 24, "hidden": None}),
    "falcon-40b": ("falcon", {}),
    "falcon-11b": ("falcon", {"norms": 1}),
    "falcon-7b": ("falcon", {"new": False, "groups": None}),
    "mpt": ("mpt", {"prefix": False}),
    "mpt-plain": ("mpt", {"prefix": False, "clip": None, "qk_norm": False, "max_bias": 16}),
    "phi2": ("phi", {"qk_norm": False}),
}
READ_BY_TRANSFORMERS = ("gpt2-published", "gpt2-untied", "bloom", "bloom-three")
"""Its other architectures are ours only (its Falcon reads another family's keys)."""


def made(name: str, **more: Any) -> tuple[Family, StackModule]:
    family_name, changes = CHANGES[name]
    family = dataclasses.replace(families[family_name].tiny(), **{**changes, **more})
    model = family.spec().build()
    assert isinstance(model, StackModule)
    model.initialise(seed=5, std=0.3)
    drawn = torch.Generator().manual_seed(6)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            p.data.copy_(torch.randn(p.shape, generator=drawn) * 0.2 + ("norm" in name))
    return family, model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", CHANGES)
def test_round_trip(name: str, tmp_path: Path) -> None:
    family, model = made(name)
    read = open_checkpoint(write(tmp_path / "m.gguf", family, model))
    assert read.family.spec() == family.spec()
    assert read.family.context == family.context
    ids = tokens(96)
    got, expected = build_model(read)(ids).logits, model(ids).logits
    assert got is not None
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
def test_transformers_reads_the_same_model(name: str, tmp_path: Path) -> None:
    family, model = made(name)
    write(tmp_path / "m.gguf", family, model)
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32, attn_implementation="eager"
    )
    theirs.eval()
    ids = tokens(96)
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_every_architecture_is_tried() -> None:
    assert set(GPT_ARCHS) == {arch_for(family) for family, _ in CHANGES.values()}


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("gpt2", {"by_layer": True}, "by_layer"),
        ("falcon-7b", {"alibi": True}, "alibi"),
        ("falcon-7b", {"parallel": False}, "parallel"),
        ("mpt", {"prefix": True}, "prefix"),
        ("mpt", {"scale": 0.3}, "scale"),
        ("phi2", {"qk_norm": True}, "qk_norm"),
    ],
)
def test_what_gguf_cannot_say_is_refused(
    name: str, change: dict[str, Any], word: str, tmp_path: Path
) -> None:
    family, model = made(name, **change)
    with pytest.raises(ConfigError, match=f"cannot express .*{word}"):
        write(tmp_path / "m.gguf", family, model)


@pytest.mark.parametrize("family_name", ["gpt-1", "gpt-3", "opt", "gpt-neox-japanese"])
def test_families_without_an_architecture_are_refused(family_name: str) -> None:
    with pytest.raises(ConfigError, match=f"GGUF has no architecture for {family_name}"):
        arch_for(family_name)


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("bloom", "bloom.feed_forward_length", 7, "feed_forward_length=7 is not allowed"),
        ("bloom", "bloom.attention.head_count_kv", 1, "head_count_kv=1 is not allowed"),
        ("mpt", "mpt.attention.head_count_kv", 1, "head_count_kv=1 is not allowed"),
        ("gptneox", "gptneox.use_parallel_residual", 3, "use_parallel_residual=3"),
        ("falcon-7b", "falcon.tensor_data_layout", "other", "tensor_data_layout='other'"),
        ("gpt2", "gpt2.expert_count", 2, "gpt2.expert_count"),
    ],
)
def test_keys_that_cannot_be_are_refused(
    name: str, key: str, value: Any, message: str, tmp_path: Path
) -> None:
    family, model = made(name)
    file = GGUFFile(write(tmp_path / "m.gguf", family, model))
    tensors = [(n, file.read(n)) for n in file.names()]
    write_gguf(tmp_path / "n.gguf", {**dict(file.metadata), key: value}, tensors)
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(tmp_path / "n.gguf")
