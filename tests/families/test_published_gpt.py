"""Published checkpoints of GPT-1's successors: counted on meta, named as the published classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from keifu.checkpoints.transfer import empty
from keifu.families import families
from keifu.families.published import PUBLISHED
from keifu.families.published.gpt import GPT_LIKE
from keifu.families.published.llama import LLAMA_LIKE
from keifu.nn.part import build, count
from keifu.nn.stack import StackModule
from keifu.text.chat_formats import FORMATS

COUNTED = {
    "gpt-1": 116_534_784,
    "gpt-2": 124_439_808,
    "gpt-2-xl": 1_557_611_200,
    "gpt-j-6b": 6_050_882_784,
    "gpt4all-j": 6_050_882_784,
    "falcon-7b": 6_921_720_704,
    "falcon-40b": 41_303_293_952,
    "falcon-180b": 178_557_088_768,
    "mpt-7b": 6_649_286_656,
    "opencalm-7b": 6_871_982_080,
    "japanese-gpt-neox-3.6b": 3_607_245_312,
    "gpt-neox-japanese-2.7b": 2_598_837_760,
    "redpajama-incite-3b": 2_775_864_320,
    "dolly-2.0-12b": 11_841_894_400,
}
"""Figures that were counted with the reference classes, written down a second time."""
CLOSED = ("gpt-3", "palm", "lamda")
"""Families without a class in transformers."""
DIFFERENT = {
    (row.family, str(sorted((k, str(v)) for k, v in row.config.items()))): name
    for name, row in GPT_LIKE.items()
    if row.family not in CLOSED
}


@pytest.mark.parametrize("name", GPT_LIKE)
def test_the_published_count_is_the_real_one(name: str) -> None:
    row = GPT_LIKE[name]
    family = families[row.family].from_hf(row.config)
    assert count(family.spec()) == row.parameters
    assert COUNTED.get(name, row.parameters) == row.parameters
    assert row.chat is None or row.chat in FORMATS
    assert families[row.family].from_hf(family.to_hf()) == family


@pytest.mark.parametrize("name", DIFFERENT.values())
def test_names_and_shapes_are_the_published_class_s(name: str) -> None:
    """Two layers of every configuration: the layers are alike, the counts above cover the rest."""
    row = GPT_LIKE[name]
    family_class = families[row.family]
    depth = family_class.fields.keys["depth"]
    config: dict[str, Any] = {**row.config, depth: 2}
    theirs_config = AutoConfig.for_model(family_class.fields.model_type, **config)
    with torch.device("meta"):
        theirs: Any = AutoModelForCausalLM
        theirs = theirs.from_config(theirs_config)
    # transformers renames GPT-NeoX's head in memory; its files keep the published name.
    renamed = "embed_out." if row.family == "gpt-neox" else "lm_head."
    expected = {
        n.replace("lm_head.", renamed): tuple(p.shape) for n, p in theirs.named_parameters()
    }
    family = family_class.from_hf(config)
    ours = build(family.spec(), device="meta")
    assert isinstance(ours, StackModule)
    got = {n: tuple(value.shape) for n, value in empty(ours, family.names())}
    assert got == expected


@pytest.mark.parametrize(
    ("name", "separate"),
    [("falcon-40b", 41_835_970_560), ("falcon-180b", 179_522_565_120)],
)
def test_falcon_with_a_head_of_its_own(name: str, separate: int) -> None:
    config = {**GPT_LIKE[name].config, "tie_word_embeddings": False}
    assert count(families["falcon"].from_hf(config).spec()) == separate


def test_no_row_is_lost() -> None:
    assert COUNTED.keys() <= GPT_LIKE.keys()
    assert not GPT_LIKE.keys() & LLAMA_LIKE.keys()
    assert {**LLAMA_LIKE, **GPT_LIKE}.items() <= PUBLISHED.items()
