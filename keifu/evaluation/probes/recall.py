"""Associative recall: of so many pairs told before, which value belongs to this key?

Poli et al. 2023 (arXiv 2302.10866), section 4.1; accuracy against the number of pairs as in Arora
et al. 2023 (Zoology, arXiv 2312.04927). A checkpoint of `recipes/associative_recall.py` is asked
in its own symbols, any other model in words.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from keifu.core.errors import KeifuError
from keifu.data.symbolic import AssociativeRecall
from keifu.evaluation.findings import Column, Lines
from keifu.evaluation.memory import WORDS, InWords, Question, Symbols, trained_on
from keifu.evaluation.probe import Probe, Subject, Trial, check_list


@dataclass(frozen=True, kw_only=True)
class Recall(Probe):
    """Of so many pairs told before, which value belongs to this key?

    A model trained on symbols (recipes/associative_recall.py --save) reads new rows of them, and
    every told key is asked. Other models are told pairs of words and asked one.
    """

    pairs: tuple[int, ...] = field(default=(), metadata={"commas": True})
    """Pairs told, with commas (default: as many as it was trained with; in words 2,4,8,16)"""
    rows: int | None = None
    """Rows a number of pairs (default: 256; in words 8)"""
    seed: int = 1_000_000
    """Of the rows"""

    title = "Associative recall: is the value of a key remembered?"
    axes = (Column("pairs", "count"),)
    measures = (
        Column("tokens", "count", "tokens of a row"),
        Column("accuracy", "share", "right values"),
        Column("asked", "count", "values asked in a row of words, in all rows of symbols"),
    )
    picture = Lines("pairs", ("accuracy",))
    grid = frozenset({"pairs"})
    examples = (
        "recall                        the default model, in words",
        "recall recaller               a checkpoint of recipes/associative_recall.py",
    )

    def __post_init__(self) -> None:
        if self.pairs:
            check_list("pairs", self.pairs, 1, len(WORDS) // 2)
        check_list("rows", (self.rows or 1,), 1, 100_000)

    def begin(self, subject: Subject) -> Trial:
        """In symbols if the checkpoint says that it was trained on them."""
        task = trained_on(subject, AssociativeRecall)
        if task is None:
            return Words(
                subject.lm, "pairs", self.pairs or (2, 4, 8, 16), self.rows or 8, self.seed
            )
        for pairs in self.pairs:
            if pairs > task.keys:
                raise KeifuError(f"--pairs {pairs}: {subject.name} knows only {task.keys} keys")
        variants = [{"pairs": pairs} for pairs in self.pairs or (task.pairs,)]
        rows = self.rows or 256
        return Symbols(subject, task, variants, measure="accuracy", rows=rows, seed=self.seed)


class Words(InWords):
    """Pairs of words; one of them is asked."""

    def question(self, size: int, drawn: random.Random) -> Question:
        """The partners, an example of the first pair, the question."""
        words = drawn.sample(WORDS, 2 * size)
        pairs = list(zip(words[::2], words[1::2], strict=True))
        key, value = drawn.choice(pairs)
        told = "\n".join(f"{a}: {b}" for a, b in pairs)
        if self.lm.has_template:
            ask = f"Which word is the partner of {key}? Answer with that word alone."
            prompt = f"Each word has a partner:\n{told}\n\n{ask}"
        else:
            prompt = f"{told}\n\nThe same again:\n{key}:"
        return Question(prompt, [value], echo=frozenset({key}))


probe = Recall
