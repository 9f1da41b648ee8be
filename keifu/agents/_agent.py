"""What every agent is: built from a model, options and its surroundings, it runs towards a goal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from keifu.agents._trace import Event
from keifu.lm.base import LM
from keifu.retrieval.memory import Embedder

Choose = Callable[[Sequence[str]], int | str]
"""A person chooses: the number of an option, from 0, or words of their own."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What an agent may use besides its model."""

    folder: Path
    """Where it keeps its state and its results; a run that was stopped goes on from there."""
    embedder: Embedder | None = None
    """What compares the texts of its memory; None: they are compared by their words."""
    choose: Choose | None = None
    """The person who chooses where there is a choice; None: the model does."""


class Agent(ABC):
    """A program over a model that takes several steps."""

    options: ClassVar[type[Any]]
    """Its options: a frozen dataclass, every field with a default."""

    def __init__(self, lm: LM, options: Any, around: Surroundings) -> None:
        self.lm, self.around = lm, around

    @abstractmethod
    def run(self, goal: str) -> Iterator[Event]:
        """Work towards the goal, telling what happens. Raises KeifuError; nothing done is lost."""
