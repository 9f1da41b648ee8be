"""Published encoders: counted on meta, by us and by the reference classes, names and shapes too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from keifu.families import families
from keifu.families.published import PUBLISHED
from keifu.families.published.encoders import ENCODERS
from keifu.nn.part import count
from tests.families.encoder_parity import same_names

COUNTED = {
    "bert-base-uncased": 109_482_240,
    "bert-large-uncased": 335_141_888,
    "albert-base": 11_683_584,
    "albert-xxlarge": 222_595_584,
    "roberta-base": 124_645_632,
    "roberta-large": 355_359_744,
}
"""Figures that were counted with the reference classes, written down a second time."""


@pytest.mark.parametrize("name", ENCODERS)
def test_the_published_count_is_the_real_one(name: str) -> None:
    row = PUBLISHED[name]
    family_class = families[row.family]
    family = family_class.from_hf(row.config)
    assert count(family.spec()) == row.parameters == COUNTED.get(name, row.parameters)
    assert family_class.from_hf(family.to_hf()) == family
    config: Any = AutoConfig.for_model(family_class.fields.model_type, **row.config)
    with torch.device("meta"):
        theirs = AutoModel.from_config(config)
    assert sum(p.numel() for p in theirs.parameters()) == row.parameters
    same_names(family, theirs)


def test_no_row_is_lost() -> None:
    assert COUNTED.keys() <= ENCODERS.keys()
    assert ENCODERS.items() <= PUBLISHED.items()
