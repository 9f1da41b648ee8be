"""The natural objective of a family: what its models are trained on, if nobody says otherwise.

family = families["t5"].tiny()
objective = natural(family)                        # span corruption
vocabulary = vocabulary_of(family, tokenizer)
model = build(objective.fitted(family.spec(), vocabulary))
data = numbered(examples, 8, objective.reader(vocabulary))
"""

from __future__ import annotations

from typing import Any

from keifu.core.errors import KeifuError
from keifu.data.vocabulary import Vocabulary
from keifu.families import Family
from keifu.families._learns import by_parts
from keifu.nn.part import Part
from keifu.nn.table import Drawn, Subwords, Table, Tree
from keifu.text.tokenizer import Tokenizer
from keifu.training.objective import Objective
from keifu.training.objectives import objectives
from keifu.training.vectors import VectorOptions


def natural(of: Family | Part) -> Objective[Any]:
    """The objective that a family's models are trained on; of bare parts, the one that fits them.

    Word vectors have a trainer of their own under the same name (`WordVectors.train`).

    Raises:
        KeifuError: a table of line labels, which `keifu vectors train` learns.
    """
    learns = by_parts(of) if isinstance(of, Part) else of.learns()
    spec = of if isinstance(of, Part) else of.spec()
    options = dict(learns.options)
    if isinstance(spec, Table):
        options["options"] = _vectors(spec)
    return objectives[learns.objective](**options)


def vocabulary_of(family: Family, tokenizer: Tokenizer) -> Vocabulary:
    """What a family's objective has to know of its tokenizer."""
    context = None if family.unlimited else family.context
    return Vocabulary.of(tokenizer, start=family.learns().start, context=context)


def _vectors(spec: Table) -> VectorOptions:
    """What the trainer of word vectors is told."""
    if spec.predicts == "label" or not isinstance(spec.output, Drawn | Tree):
        raise KeifuError("a classifier of lines has its own trainer: keifu vectors train --labels")
    drawn = spec.output if isinstance(spec.output, Drawn) else None
    subwords = spec.input if isinstance(spec.input, Subwords) else None
    found: dict[str, Any] = {"width": spec.input.width}
    if drawn is not None:
        found |= {"negatives": drawn.negatives, "power": drawn.power}
    if subwords is not None:
        names = ("buckets", "shortest", "longest")
        found |= {"family": "fasttext", **{name: getattr(subwords, name) for name in names}}
    return VectorOptions(
        method="cbow" if spec.predicts == "middle" else "skip-gram",
        loss="negative" if drawn is not None else "tree",
        **found,
    )
