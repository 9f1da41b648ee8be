"""Prefix LM: a text's start is given and seen by all, the rest is predicted.

Source: Raffel et al. 2020, section 3.2.3; Liu et al. 2018, arXiv 1801.10198.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from keifu.core.errors import KeifuError
from keifu.data.vocabulary import Vocabulary
from keifu.nn.attention import Attention
from keifu.nn.losses import IGNORE
from keifu.nn.masks import Either, Landmarks, Prefix
from keifu.nn.part import Part
from keifu.nn.stack import Stack
from keifu.training.batch import Sequences
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.reading import Drawn, kept, pieces


@dataclass(frozen=True, kw_only=True)
class PrefixLM(CausalLM):
    """Causal LM after a place that is drawn evenly in each document."""

    def row(self, drawn: Drawn, vocabulary: Vocabulary) -> tuple[Sequences, bool]:
        """Labels from the drawn place on, and landmarks that say where it is."""
        rows, labels, marks = [], [], []
        for ids, wanted in zip(pieces(drawn.example), kept(drawn.example), strict=True):
            cut = int(drawn.random.integers(1, len(ids))) if len(ids) > 1 else 1
            rows.append(ids)
            labels.append([IGNORE] * cut + wanted[cut:])
            marks.append(Landmarks(prefix=cut))
        if not rows:
            return Sequences.of([[0]], [[IGNORE]], landmarks=[Landmarks(prefix=1)]), False
        teaches = any(label != IGNORE for row in labels for label in row)
        return Sequences.of(rows, labels, landmarks=marks), teaches

    def fitted(self, spec: Part, vocabulary: Vocabulary) -> Part:
        """The stack with prefixes seen by all."""
        return prefixed(spec)


def prefixed(spec: Part) -> Part:
    """The same stack, in which every query sees the row's prefix.

    Raises:
        KeifuError: a mixer that has no mask, and so cannot see ahead.
    """
    if not isinstance(spec, Stack):
        raise KeifuError(f"a prefix LM is one stack of blocks, not {type(spec).__name__}")
    blocks = []
    for block in spec.blocks:
        mixer = block.mixer
        if not isinstance(mixer, Attention):
            raise KeifuError(f"{type(mixer).__name__} cannot see a prefix as a whole")
        mask = mixer.mask
        if not (isinstance(mask, Either) and Prefix() in (mask.first, mask.second)):
            block = replace(block, mixer=replace(mixer, mask=mask | Prefix()))
        blocks.append(block)
    return replace(spec, blocks=tuple(blocks))


objective = PrefixLM
