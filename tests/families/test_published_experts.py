"""Published mixtures of experts: counted on meta, named and shaped as the published classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from keifu.checkpoints.transfer import outline, taken
from keifu.families import families
from keifu.families.published import PUBLISHED
from keifu.families.published.experts import EXPERTS_LIKE
from keifu.nn.part import build, count
from keifu.nn.stacked import Stacked

COUNTED = {
    "mixtral-8x7b": 46_702_792_704,
    "switch-base-8": 619_339_008,
    "switch-c-2048": 1_571_327_875_360,
}
"""Written down a second time."""
CLASSES: dict[str, tuple[Any, Any]] = {
    "mixtral": (hf.MixtralConfig, hf.MixtralForCausalLM),
    "qwen2-moe": (hf.Qwen2MoeConfig, hf.Qwen2MoeForCausalLM),
    "qwen3-moe": (hf.Qwen3MoeConfig, hf.Qwen3MoeForCausalLM),
    "switch": (hf.SwitchTransformersConfig, hf.SwitchTransformersForConditionalGeneration),
}
SHORTER: dict[str, dict[str, int]] = {
    "switch": {
        "num_layers": 4, "num_decoder_layers": 4, "num_experts": 11,
        "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2,
    },
    "mixtral": {"num_hidden_layers": 2},
    "qwen2-moe": {"num_hidden_layers": 2, "num_experts": 11},
    "qwen3-moe": {"num_hidden_layers": 2, "num_experts": 11},
}  # fmt: skip


@pytest.mark.parametrize("name", EXPERTS_LIKE)
def test_the_published_count_is_the_real_one(name: str) -> None:
    row = EXPERTS_LIKE[name]
    assert PUBLISHED[name] == row
    family = families[row.family].from_hf(row.config)
    assert count(family.spec()) == row.parameters == COUNTED.get(name, row.parameters)
    assert families[row.family].from_hf(family.to_hf()) == family


def apart(names: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Their fused tensors of all experts, as their files hold them: one an expert and matrix."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in names.items():
        path, _, leaf = name.rpartition(".")
        if leaf not in ("gate_up_proj", "down_proj"):
            found[name] = shape
            continue
        parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[leaf]
        rows = shape[1] // len(parts)
        for e in range(shape[0]):
            found |= {f"{path}.{e}.{p}.weight": (rows, shape[2]) for p in parts}
    return found


def as_mixtral(name: str) -> str:
    """Today's names in memory -> those of its files."""
    for new, old in (("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")):
        name = name.replace(new, old) if ".experts." in name else name
    return name.replace(".mlp.", ".block_sparse_moe.")


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen1.5-moe-a2.7b", "qwen3-30b-a3b",
                                  "switch-base-8", "switch-c-2048"])  # fmt: skip
def test_names_and_shapes_are_the_published_class_s(name: str) -> None:
    """Fewer layers and experts: they are alike, the counts above cover the rest."""
    row = EXPERTS_LIKE[name]
    config = {**row.config, **SHORTER[row.family]}
    made, kind = CLASSES[row.family]
    with torch.device("meta"):
        theirs = kind(made(**config))
    if hasattr(theirs, "shared"):  # where the head is not tied, transformers 5 has two copies
        theirs.set_input_embeddings(theirs.shared)
    wanted = apart({n: tuple(p.shape) for n, p in theirs.named_parameters()})
    if row.family == "mixtral":
        wanted = {as_mixtral(n): shape for n, shape in wanted.items()}
    family = families[row.family].from_hf(config)
    model = build(family.spec(), device="meta")
    ours = {
        name: tuple(taken(model, own, rule, piece).shape)
        for own, rule, piece, name in outline(model, family.names())
    }
    assert ours == wanted


def test_switch_c_holds_the_weights_that_the_paper_counts() -> None:
    """30 layers * 2048 experts * two matrices of 2080 * 6144, without any memory."""
    row = EXPERTS_LIKE["switch-c-2048"]
    model = build(families["switch"].from_hf(row.config).spec(), device="meta")
    stacks = [m for m in model.modules() if isinstance(m, Stacked)]
    assert len(stacks) == 30 * 2
    assert {m.count for m in stacks} == {2048}
    experts = sum(m.weight.numel() for m in stacks if m.weight is not None)
    assert experts == 30 * 2048 * 2 * 2080 * 6144 == 1_570_347_417_600
    assert round(row.parameters / 1e9) == 1571
    assert 3.1e12 < row.parameters * 2 < 3.2e12, "3.1 TB in bfloat16"
