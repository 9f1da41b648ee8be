"""Published LLaMA-like checkpoints: counted on the meta device, named as the published classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from keifu.checkpoints.transfer import outline
from keifu.families import families
from keifu.families.published.llama import LLAMA_LIKE
from keifu.nn.part import build, count
from keifu.nn.stack import StackModule
from keifu.text.chat_formats import FORMATS

COUNTED = {
    **{"llama-7b": 6_738_415_616, "llama-13b": 13_015_864_320, "llama-33b": 32_528_943_616},
    **{"llama-65b": 65_285_660_672, "llama-2-70b": 68_976_648_192, "llama-3-8b": 8_030_261_248},
    **{"llama-3-70b": 70_553_706_496, "llama-3.1-405b": 405_853_388_800},
    **{"ziya2-13b": 13_091_886_080, "gemma-2-2b": 2_614_341_888, "gemma-2-9b": 9_241_705_984},
    **{"gemma-2-27b": 27_227_128_320, "phi-3-mini-4k": 3_821_079_552},
    **{"mistral-7b": 7_241_732_096, "qwen-7b": 7_721_324_544, "qwen-14b": 14_167_290_880},
    **{"qwen-72b": 72_287_920_128, "stablelm-3b-4e1t": 2_795_443_200},
    **{"yi-34b": 34_388_917_248, "openllama-7b": 6_738_415_616},
    **{"deepseek-coder-33b": 33_342_991_360, "alma-7b-ja": 6_738_415_616},
}
"""Figures that were counted with the reference classes, written down a second time."""
DIFFERENT = {
    (row.family, str(sorted((k, str(v)) for k, v in row.config.items()))): name
    for name, row in LLAMA_LIKE.items()
    if row.family != "qwen"
}
"""One name for each configuration that transformers has a class for."""


@pytest.mark.parametrize("name", LLAMA_LIKE)
def test_the_published_count_is_the_real_one(name: str) -> None:
    row = LLAMA_LIKE[name]
    family = families[row.family].from_hf(row.config)
    assert count(family.spec()) == row.parameters
    assert COUNTED.get(name, row.parameters) == row.parameters
    assert row.chat is None or row.chat in FORMATS
    again = families[row.family].from_hf(family.to_hf())
    assert again == family


@pytest.mark.parametrize("name", DIFFERENT.values())
def test_names_and_shapes_are_the_published_class_s(name: str) -> None:
    """Two layers of every configuration: the layers are alike, the counts above cover the rest."""
    row = LLAMA_LIKE[name]
    family_class = families[row.family]
    config: dict[str, Any] = {**row.config, "num_hidden_layers": 2}
    kind = config.pop("model_type", family_class.fields.model_type)
    theirs_config = AutoConfig.for_model(kind, **config)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(theirs_config)
    family = family_class.from_hf(config)
    ours = build(family.spec(), device="meta")
    assert isinstance(ours, StackModule)
    expected = {n: tuple(p.shape) for n, p in theirs.named_parameters()}
    got = {}
    for parameter, _, piece, theirs_name in outline(ours, family.names()):
        shape = tuple(ours.get_parameter(parameter).shape)
        owner = ours.get_submodule(parameter.rpartition(".")[0])
        rows = owner.rows[piece] if piece else shape[0]  # type: ignore[union-attr,index]
        got[theirs_name] = (rows, *shape[1:])
    assert got == expected


def test_all_figures_are_rows() -> None:
    assert COUNTED.keys() <= LLAMA_LIKE.keys()
