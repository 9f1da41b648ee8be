"""What a model remembers of its context: in symbols that it was trained on, or in plain words."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from keifu.core.errors import KeifuError
from keifu.data.symbolic import FILE, Task, task_of
from keifu.evaluation.findings import Row
from keifu.evaluation.probe import Subject
from keifu.lm.base import LM

WORDS = (
    "river lamp stone apple garden violin copper window harbour candle forest pencil anchor "
    "market saddle bottle engine feather ladder mirror needle orange pepper quilt ribbon shovel "
    "tunnel umbrella valley wagon basket camera desert eagle fiddle glove hammer island jacket "
    "kettle lemon magnet napkin oven parrot rabbit spoon table velvet whistle acorn blanket "
    "cabin dragon elbow flute grape helmet icicle jungle kitten lobster meadow"
).split()
"""Common nouns, none of which is part of another."""
VERBS = {"associative-recall": "recall", "selective-copying": "copying", "needle": "needle"}
"""Which probe asks a task."""


T = TypeVar("T", bound=Task)


def trained_on(subject: Subject, wanted: type[T]) -> T | None:
    """The task that a checkpoint of symbols was trained on; None for a model of text.

    Raises:
        KeifuError: it was trained on another.
    """
    if subject.folder is None or not (subject.folder / FILE).exists():
        return None
    task = task_of(subject.folder)
    if not isinstance(task, wanted):
        ask = f"keifu probe {VERBS[task.name]} {subject.ref}"
        raise KeifuError(f"{subject.name} was trained on {task.name}: {ask}")
    return task


class Symbols:
    """A model of symbols on new rows of its task: each row read once, its answers looked up in it.

    Args:
        variants: fields of the task in each cell.
        measure: what the share of right answers is called.
        rows: rows a cell.
    """

    notes: Sequence[str] = ()

    def __init__(
        self,
        subject: Subject,
        task: Task,
        variants: Sequence[Mapping[str, int]],
        *,
        measure: str,
        rows: int,
        seed: int,
    ) -> None:
        self.lm, self.task, self.measure, self.rows, self.seed = (
            subject.lm, task, measure, rows, seed,
        )  # fmt: skip
        self.cells: Sequence[Row] = [dict(variant) for variant in variants]
        self.settings: Row = {f"task.{k}": v for k, v in dataclasses.asdict(task).items()}
        for variant in variants:
            length = task.changed(**variant).draw(1, 0).ids.shape[1]
            if length > self.lm.context:
                said = " ".join(f"--{name} {value}" for name, value in variant.items())
                raise KeifuError(
                    f"{said} makes rows of {length} symbols, more than the {self.lm.context} that "
                    f"{subject.name} holds"
                )

    async def look(self, cell: Row) -> Row:
        """The share of right answers over all rows."""
        fields: Any = dict(cell)
        drawn = self.task.changed(**fields).draw(self.rows, self.seed)
        told = await asyncio.gather(*(self._likeliest(ids.tolist()) for ids in drawn.ids))
        right = sum(
            said[place] == answer
            for said, answers in zip(told, drawn.answers.tolist(), strict=True)
            for place, answer in zip(drawn.places, answers, strict=True)
        )
        return {
            "tokens": drawn.ids.shape[1],
            self.measure: right / drawn.answers.size,
            "asked": drawn.answers.size,
        }

    def close(self) -> None:
        """Nothing is held."""

    async def _likeliest(self, ids: list[int]) -> list[int]:
        """What the model expects at each place, given those before it."""
        done = await self.lm.acomplete(ids, max_tokens=0, prompt_logprobs=1)
        return [t.top[0].id if t.top else -1 for t in done.prompt_logprobs or ()]


@dataclass(frozen=True)
class Question:
    """A prompt and the words that answer it, in their order."""

    prompt: str
    answer: Sequence[str]
    echo: frozenset[str] = frozenset()
    """Words that an answer may repeat from the question."""


class InWords(ABC):
    """The same question put to a model of text, in common words."""

    notes: Sequence[str] = ()

    def __init__(self, lm: LM, axis: str, values: Sequence[int], rows: int, seed: int) -> None:
        self.lm, self.axis, self.seed = lm, axis, seed
        self.settings: Row = {}
        self.cells: Sequence[Row] = [
            {axis: value, "sample": sample} for value in values for sample in range(rows)
        ]

    @abstractmethod
    def question(self, size: int, drawn: random.Random) -> Question:
        """What is asked at this size."""

    async def look(self, cell: Row) -> Row:
        """The share of the answer's words that are right, each in its place."""
        size = cell[self.axis]
        assert isinstance(size, int)
        asked = self.question(size, random.Random(f"{self.seed} {sorted(cell.items())}"))
        prompt, answer = asked.prompt, asked.answer
        options: dict[str, Any] = {"max_tokens": 8 * len(answer) + 8, "temperature": 0}
        if self.lm.has_template:
            messages = [{"role": "user", "content": prompt}]
            done = await self.lm.achat(messages, **options)
            tokens = await asyncio.to_thread(self.lm.count_tokens, messages)
        else:
            done = await self.lm.acomplete(prompt, stop="\n", **options)
            tokens = await asyncio.to_thread(self.lm.count_tokens, prompt)
        words = re.findall(r"\w+", done.text.lower())
        said = [word for word in words if word in WORDS and word not in asked.echo]
        right = sum(a == b for a, b in zip(said, answer, strict=False))
        return {"tokens": tokens, "accuracy": right / len(answer), "asked": len(answer)}

    def close(self) -> None:  # noqa: B027 (nothing to free)
        """Nothing is held."""
