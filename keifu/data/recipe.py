"""How data is cleaned, as a YAML file: sources, how they are read, steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from keifu.core.errors import ConfigError, KeifuError
from keifu.data.read import Reading
from keifu.data.step import Step, steps_of, valued

_LARGEST = 1 << 20
_USUAL: Sequence[Any] = (
    "normalise", "boilerplate", "toxic", "gopher", "gopher-repetition", "exact", "lines", "minhash",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """What a recipe file says."""

    steps: tuple[Step, ...]
    sources: tuple[str, ...] = ()
    reading: Reading = Reading()

    def with_evaluation(self, sets: Sequence[str]) -> DataRecipe:
        """The recipe with these evaluation sets for its step `contamination`, which comes first."""
        if not sets:
            return self
        from keifu.data.steps.contamination import Contamination

        given = tuple(sets)
        if any(isinstance(step, Contamination) for step in self.steps):
            steps = tuple(
                dataclasses.replace(step, against=(*step.against, *given))
                if isinstance(step, Contamination)
                else step
                for step in self.steps
            )
        else:
            steps = (Contamination(against=given), *self.steps)
        return dataclasses.replace(self, steps=steps)


def usual() -> DataRecipe:
    """The steps that are taken where no recipe is named."""
    return DataRecipe(steps=tuple(steps_of(list(_USUAL))))


def read_recipe(path: str | Path) -> DataRecipe:
    """A recipe file: `steps:` and, where they are fixed, `sources:` and `reading:`.

    Raises:
        KeifuError: it cannot be read; ConfigError: something in it is wrong.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise KeifuError(f"{path}: a recipe of more than {_LARGEST >> 20} MB")
        told = yaml.safe_load(path.read_text("utf-8"))
    except OSError as refused:
        raise KeifuError(f"cannot read {path}: {refused.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as broken:
        said = " ".join(str(broken).split())[:200]
        raise ConfigError(f"{path} is no YAML: {said}") from None
    if not isinstance(told, Mapping) or not told.keys() <= {"steps", "sources", "reading", "about"}:
        raise ConfigError(f"{path}: a recipe has steps, and may have sources, reading, about")
    sources = told.get("sources") or []
    if not isinstance(sources, list) or not all(isinstance(one, str) for one in sources):
        raise ConfigError(f"{path}: sources is a list of names")
    return DataRecipe(
        steps=tuple(steps_of(told.get("steps"), f"{path}: steps")),
        sources=tuple(sources),
        reading=valued(Reading, told.get("reading") or {}, f"{path}: reading"),
    )
