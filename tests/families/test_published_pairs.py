"""Published encoder-decoders: counted on meta, named and shaped as the published classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

from keifu.checkpoints.transfer import empty
from keifu.families import families
from keifu.families.published.pairs import BART_LIKE
from keifu.nn.part import build, count

COUNTED = {"bart-large": 406_291_456, "mbart-large-cc25": 610_851_840}
"""Figures that were counted with the reference classes, written down a second time."""


@pytest.mark.parametrize("name", BART_LIKE)
def test_the_published_count_is_the_real_one(name: str) -> None:
    row = BART_LIKE[name]
    family = families[row.family].from_hf(row.config)
    assert count(family.spec()) == row.parameters
    assert COUNTED.get(name, row.parameters) == row.parameters
    assert families[row.family].from_hf(family.to_hf()) == family


@pytest.mark.parametrize("name", [n for n, row in BART_LIKE.items() if row.family != "transformer"])
def test_names_and_shapes_are_the_published_class_s(name: str) -> None:
    """Every tensor but the repeated tables and the sinusoids, which files leave out."""
    row = BART_LIKE[name]
    family_class = families[row.family]
    family = family_class.from_hf(row.config)
    theirs: Any = getattr(transformers, family.to_hf()["architectures"][0])
    with torch.device("meta"):
        theirs = theirs(AutoConfig.for_model(family_class.fields.model_type, **row.config))
    wanted = {n: tuple(t.shape) for n, t in theirs.state_dict().items()}
    names = family.names()
    kept = {n: s for n, s in wanted.items() if not names.dropped(n)}
    ours = build(family.spec(), device="meta")
    assert {n: tuple(t.shape) for n, t in empty(ours, names)} == kept
    tables = sum(p.numel() for n, p in theirs.named_parameters() if "embed_positions" in n)
    learnt = tables if row.family in ("bart", "mbart") else 0
    assert count(family.spec()) == sum(p.numel() for p in theirs.parameters()) - tables + learnt
