"""Selective copying: say again the few symbols that stood among so much noise, in their order.

Gu & Dao 2023 (Mamba, arXiv 2312.00752), section 4.1. A checkpoint of `recipes/selective_copying.py`
is asked in its own symbols, at lengths beyond those that it was trained on too; others in words.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from keifu.data.symbolic import SelectiveCopying
from keifu.evaluation.findings import Column, Lines
from keifu.evaluation.memory import WORDS, InWords, Question, Symbols, trained_on
from keifu.evaluation.probe import Probe, Subject, Trial, check_list

NOISE = "blah"
COUNT = 4
"""Words to copy, as many as the recipe's symbols."""


@dataclass(frozen=True, kw_only=True)
class Copying(Probe):
    """Say again the few symbols that stood among so much noise, in their order.

    A model trained on symbols (recipes/selective_copying.py --save) reads new rows of them. Other
    models are shown how it goes with words, and asked.
    """

    lengths: tuple[int, ...] = field(default=(), metadata={"commas": True})
    """Places with and without noise, with commas (default: 1, 2, 4 and 8 times what it was trained
    on; in words 8,16,32,64)"""
    rows: int | None = None
    """Rows a length (default: 256; in words 8)"""
    seed: int = 1_000_000
    """Of the rows"""

    title = "Selective copying: are symbols found among noise?"
    axes = (Column("length", "count"),)
    measures = (
        Column("tokens", "count", "tokens of a row"),
        Column("accuracy", "share", "symbols that are right, each in its place"),
        Column("asked", "count", "symbols asked in a row of words, in all rows of symbols"),
    )
    picture = Lines("length", ("accuracy",))
    grid = frozenset({"lengths"})
    examples = (
        "copying                            the default model, in words",
        "copying copier/mamba copier/s4d    checkpoints of recipes/selective_copying.py",
    )

    def __post_init__(self) -> None:
        if self.lengths:
            check_list("lengths", self.lengths, COUNT, 1 << 20)
        check_list("rows", (self.rows or 1,), 1, 100_000)

    def begin(self, subject: Subject) -> Trial:
        """In symbols if the checkpoint says that it was trained on them."""
        task = trained_on(subject, SelectiveCopying)
        if task is None:
            asked = self.lengths or (8, 16, 32, 64)
            return Words(subject.lm, "length", asked, self.rows or 8, self.seed)
        room = subject.lm.context - task.count - 1
        fit = [n * task.length for n in (1, 2, 4, 8) if n * task.length <= room]
        variants = [{"length": length} for length in self.lengths or fit]
        rows = self.rows or 256
        return Symbols(subject, task, variants, measure="accuracy", rows=rows, seed=self.seed)


class Words(InWords):
    """Words among noise."""

    def question(self, size: int, drawn: random.Random) -> Question:
        """Two examples, then a line of the given length."""
        lines = []
        words: list[str] = []
        for length in (8, 8, size):
            words = drawn.sample(WORDS, COUNT)
            places = sorted(drawn.sample(range(length), COUNT))
            line = [NOISE] * length
            for place, word in zip(places, words, strict=True):
                line[place] = word
            lines.append(f"Line: {' '.join(line)}\nWords: {' '.join(words)}")
        shown = "\n\n".join(lines)
        ask = f"Copy the words of the last line in their order, without {NOISE}.\n\n{shown}"
        return Question(ask[: ask.rindex("Words:") + len("Words:")], words)


probe = Copying
