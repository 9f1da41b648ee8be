"""What a family's models learn from, by name: its parts say it, unless the family does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from keifu.nn.characters import CharacterCNN
from keifu.nn.experts import Experts
from keifu.nn.pair import Pair
from keifu.nn.part import Part
from keifu.nn.stack import Stack
from keifu.nn.table import Table
from keifu.nn.task_heads import MaskedLM

BALANCED = {"balance": 0.01, "router_z": 0.001}
"""Weights of the experts' own losses (Fedus et al. 2021, sec. 2.2; Zoph et al. 2022, sec. 3.2)."""
JUDGED: dict[str, tuple[str, Mapping[str, Any]]] = {
    "classify": ("classification", {"head": "classify"}),
    "tag": ("classification", {"head": "tag", "read": "every"}),
    "answer": ("span", {}),
}
"""The head of a task -> the objective that trains it."""


@dataclass(frozen=True, kw_only=True)
class Learns:
    """An objective by its name, and how a family's models take it."""

    objective: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """The objective's fields that are not as by default."""
    start: str | None = None
    """The role (bos, pad, eos) of the token that a pair's decoder begins with; None: the first of
    these that the tokenizer has."""


def by_parts(spec: Part) -> Learns:
    """What models of these parts are usually trained on."""
    if isinstance(spec, Table):
        return Learns(objective="word-vectors")
    if isinstance(spec, Pair):
        return Learns(objective="seq2seq", options=balanced(spec))
    if not isinstance(spec, Stack) or isinstance(spec.input, CharacterCNN):
        return Learns(objective="bidirectional-lm")
    heads = dict(spec.heads)
    if isinstance(spec.head, MaskedLM):
        return Learns(objective="next-sentence" if "next" in heads else "masked-lm")
    if spec.head is not None:
        return Learns(objective="causal-lm", options=balanced(spec))
    for name, (objective, options) in JUDGED.items():
        if name in heads:
            return Learns(objective=objective, options=options)
    return Learns(objective="contrastive")


def balanced(spec: Stack | Pair) -> dict[str, Any]:
    """The option that keeps experts in balance, where there are any."""
    stacks = (spec.encoder, spec.decoder) if isinstance(spec, Pair) else (spec,)
    sparse = any(isinstance(block.mlp, Experts) for stack in stacks for block in stack.blocks)
    return {"auxiliary": BALANCED} if sparse else {}
