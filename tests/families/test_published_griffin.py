"""Published RecurrentGemmas and HyenaDNAs: counted on meta; the former named as the class is."""

from __future__ import annotations

import pytest
import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from keifu.checkpoints.transfer import empty
from keifu.families import families
from keifu.families.published.griffin import GRIFFIN_LIKE, HYENA_LIKE
from keifu.nn.part import build, count
from keifu.text.chat_formats import FORMATS


@pytest.mark.parametrize("name", [*GRIFFIN_LIKE, *HYENA_LIKE])
def test_the_published_count_is_the_real_one(name: str) -> None:
    row = (GRIFFIN_LIKE | HYENA_LIKE)[name]
    family = families[row.family].from_hf(row.config)
    assert count(family.spec()) == row.parameters
    assert row.chat is None or row.chat in FORMATS
    assert families[row.family].from_hf(family.to_hf()) == family


@pytest.mark.parametrize("name", ["recurrentgemma-2b", "recurrentgemma-9b"])
def test_names_and_shapes_are_the_published_class_s(name: str) -> None:
    row = GRIFFIN_LIKE[name]
    family = families[row.family].from_hf(row.config)
    with torch.device("meta"):
        theirs = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**row.config))
    names = family.names()
    wanted = {n: tuple(t.shape) for n, t in theirs.state_dict().items() if not names.dropped(n)}
    ours = build(family.spec(), device="meta")
    assert {n: tuple(t.shape) for n, t in empty(ours, names)} == wanted
    assert sum(p.numel() for p in theirs.parameters()) == row.parameters
