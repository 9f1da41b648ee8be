"""Published sizes of Mamba, Falcon Mamba and Mamba-2, beside the reference classes on meta."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from keifu.checkpoints.transfer import empty
from keifu.families import families
from keifu.families.mamba2 import Mamba2Family
from keifu.families.published.mamba import MAMBA_LIKE
from keifu.nn.part import build, count
from keifu.nn.stack import StackModule


def test_the_figures_of_the_list() -> None:
    assert MAMBA_LIKE["mamba-130m"].parameters == 129_135_360
    assert MAMBA_LIKE["mamba-2.8b"].parameters == 2_768_345_600


@pytest.mark.parametrize("name", MAMBA_LIKE)
def test_counts_names_and_shapes_are_the_published_class_s(name: str) -> None:
    row = MAMBA_LIKE[name]
    family = families[row.family].from_hf(row.config)
    assert count(family.spec()) == row.parameters
    assert families[row.family].from_hf(family.to_hf()) == family
    small = families[row.family].from_hf({**row.config, "num_hidden_layers": 2})
    ours = build(small.spec(), device="meta")
    assert isinstance(ours, StackModule)
    given = small.to_hf()
    if isinstance(small, Mamba2Family):  # infinity has a spelling of its own in JSON
        given["time_step_limit"] = list(small.limits)
    config = AutoConfig.for_model(**given)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config)
    wanted = {n: tuple(t.shape) for n, t in theirs.state_dict().items()}
    if config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    assert {n: tuple(t.shape) for n, t in empty(ours, small.names())} == wanted
