"""Published T5s: counted on meta, named and shaped as the published class."""

from __future__ import annotations

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from keifu.checkpoints.transfer import empty
from keifu.families import families
from keifu.families.published import PUBLISHED
from keifu.families.published.t5 import T5_LIKE
from keifu.nn.part import build, count

COUNTED = {
    "t5-base": 222_903_552,
    "t5-11b": 11_307_321_344,
    "t0": 11_135_332_352,
    "flan-t5-base": 247_577_856,
}
"""Written down a second time: the first two are the figures that the project goes by."""


@pytest.mark.parametrize("name", T5_LIKE)
def test_counts_names_and_shapes(name: str) -> None:
    """transformers 5 ties the head of every T5, so a head of its own is added to its figures."""
    row = T5_LIKE[name]
    assert PUBLISHED[name] == row
    family = families[row.family].from_hf(row.config)
    assert count(family.spec()) == row.parameters == COUNTED.get(name, row.parameters)
    assert families[row.family].from_hf(family.to_hf()) == family
    with torch.device("meta"):
        theirs = T5ForConditionalGeneration(T5Config(**row.config))
    wanted = {n: tuple(p.shape) for n, p in theirs.named_parameters()}
    if not theirs.config.scale_decoder_outputs:
        wanted["lm_head.weight"] = tuple(theirs.lm_head.weight.shape)
    model = build(family.spec(), device="meta")
    assert {n: tuple(v.shape) for n, v in empty(model, family.names())} == wanted
    assert sum(torch.Size(s).numel() for s in wanted.values()) == row.parameters
