"""Gist: a prompt is pressed into a few tokens, through which alone the rest knows it.

Source: Mu et al. 2023, arXiv 2304.08467, section 3. An example's first piece is the prompt, its
second, if there is one, the input; the target is the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from keifu.core.errors import KeifuError, unknown
from keifu.data import gist
from keifu.data.vocabulary import Vocabulary
from keifu.nn.gist import TOKEN, gisted
from keifu.nn.pair import Pair
from keifu.nn.part import Part
from keifu.nn.stack import Stack
from keifu.training.batch import Pairs, Sequences
from keifu.training.objective import Loss, Objective
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.objectives.seq2seq import Seq2Seq
from keifu.training.reading import Drawn, Reader, merged, paired, pieces


@dataclass(frozen=True, kw_only=True)
class Gist(Objective[Sequences | Pairs]):
    """Causal LM or seq2seq on the outputs, under the gist mask (`fitted`)."""

    k: int = 1
    """Gist tokens of a prompt"""
    form: Literal["row", "pair"] = "row"
    """One stack's row, or an encoder-decoder's pair"""

    def __post_init__(self) -> None:
        if self.form not in ("row", "pair"):
            raise unknown("form", self.form, ("row", "pair"))

    def __call__(self, model: nn.Module, batch: Sequences | Pairs) -> Loss:
        """The loss of a batch."""
        if isinstance(batch, Pairs):
            return Seq2Seq()(model, batch)
        return CausalLM()(model, batch)

    def reader(self, vocabulary: Vocabulary) -> Reader[Sequences | Pairs]:
        """Rows of prompt, gist tokens, input, output."""
        if self.form == "row":
            return lambda examples: merged((self._row(x, vocabulary), True) for x in examples)
        return lambda examples: paired((*self._pair(x, vocabulary), True) for x in examples)

    def fitted(self, spec: Part, vocabulary: Vocabulary) -> Part:
        """With the gist mask."""
        if not isinstance(spec, Stack | Pair):
            raise KeifuError(f"gist tokens need attention, not {type(spec).__name__}")
        return gisted(spec)

    def _example(self, drawn: Drawn, vocabulary: Vocabulary) -> gist.Example:
        parts, target = pieces(drawn.example), drawn.example.target
        if len(parts) > 2 or target is None:
            raise KeifuError("gist needs a prompt, perhaps an input as second piece, and a target")
        output = vocabulary.bare(target.tolist())
        end = [vocabulary.roles["eos"]] if "eos" in vocabulary.roles else []
        given = tuple(parts[1]) if len(parts) > 1 else ()
        return gist.Example(prompt=tuple(parts[0]), input=given, output=(*output, *end))

    def _row(self, drawn: Drawn, vocabulary: Vocabulary) -> Sequences:
        row = gist.row(self._example(drawn, vocabulary), vocabulary.first(TOKEN), self.k)
        return Sequences.of([row.ids], [row.labels], landmarks=[row.landmarks])

    def _pair(self, drawn: Drawn, vocabulary: Vocabulary) -> tuple[Sequences, Sequences]:
        example = self._example(drawn, vocabulary)
        row = gist.source(example, vocabulary.first(TOKEN), self.k)
        target = [vocabulary.id("start"), *example.output]
        source = Sequences.of([row.ids], landmarks=[row.landmarks])
        return source, Sequences.of([target], [target])


objective = Gist
