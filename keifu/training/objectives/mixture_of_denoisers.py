"""A mixture of denoisers: each text is damaged in one of seven ways, and a sign says in which.

Source: Tay et al. 2022, arXiv 2205.05131 (UL2), section 3.1; PaLM 2 has a mixture of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from keifu.core.errors import unknown
from keifu.data.denoisers import SPELT, UL2
from keifu.data.vocabulary import Vocabulary
from keifu.nn.losses import IGNORE
from keifu.nn.masks import Landmarks
from keifu.nn.part import Part
from keifu.training.batch import Pairs, Sequences
from keifu.training.objective import Loss, Objective
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.objectives.prefix_lm import prefixed
from keifu.training.objectives.seq2seq import Seq2Seq
from keifu.training.reading import Drawn, Reader, merged

FORMS = ("pair", "row")


@dataclass(frozen=True, kw_only=True)
class MixtureOfDenoisers(Objective[Pairs | Sequences]):
    """Seq2seq for encoder-decoders; for one stack input and target are a prefix LM's row."""

    form: Literal["pair", "row"] = "pair"
    """An encoder-decoder's pair, or one stack's row"""
    signs: bool = True
    """Put the mode's sign ([NLU], [S2S], [NLG]) before the input"""
    z: float = 0.0
    """Weight of log(Z)^2"""
    auxiliary: dict[str, float] = field(default_factory=dict)
    """Weights of losses that layers emit, by name"""

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise unknown("form", self.form, FORMS)

    def __call__(self, model: nn.Module, batch: Pairs | Sequences) -> Loss:
        """The loss of a batch."""
        if isinstance(batch, Pairs):
            return Seq2Seq(z=self.z, auxiliary=self.auxiliary)(model, batch)
        return CausalLM(z=self.z, auxiliary=self.auxiliary)(model, batch)

    def made(self, drawn: Drawn, vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
        """Input, with its sign, and target of one of the seven, drawn evenly."""
        ids = vocabulary.bare(drawn.example.ids.tolist())
        if len(ids) < 2:
            return [], []
        one = UL2[int(drawn.random.integers(len(UL2)))]
        read, written = one(ids, vocabulary.sentinels, drawn.random)
        sign = [vocabulary.first(*SPELT[one.mode])] if self.signs else []
        return sign + read, written

    def reader(self, vocabulary: Vocabulary) -> Reader[Pairs | Sequences]:
        """Pairs or rows."""
        if self.form == "pair":
            return _AsPair(of=self).reader(vocabulary)
        return lambda examples: merged(self._row(one, vocabulary) for one in examples)

    def fitted(self, spec: Part, vocabulary: Vocabulary) -> Part:
        """One stack sees its input as a whole."""
        return spec if self.form == "pair" else prefixed(spec)

    def _row(self, drawn: Drawn, vocabulary: Vocabulary) -> tuple[Sequences, bool]:
        read, written = self.made(drawn, vocabulary)
        end = [vocabulary.roles["eos"]] if "eos" in vocabulary.roles else []
        ids = [*(read or [0]), *written, *end]
        labels = [IGNORE] * len(read or [0]) + (written + end if read else [IGNORE] * len(end))
        marks = [Landmarks(prefix=len(read or [0]))]
        return Sequences.of([ids], [labels], landmarks=marks), bool(read)


@dataclass(frozen=True, kw_only=True)
class _AsPair(Seq2Seq):
    """The reader of pairs."""

    of: MixtureOfDenoisers

    def made(self, drawn: Drawn, vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
        """The mixture's."""
        read, written = self.of.made(drawn, vocabulary)
        return vocabulary.marked(read) if read else [], written


objective = MixtureOfDenoisers
