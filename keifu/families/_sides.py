"""Configurations inside one: an encoder's and a decoder's, a base model's, of any families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from keifu.core.errors import ConfigError, unknown
from keifu.families import ARCHITECTURES, families
from keifu.families._family import Family

READS = {"is_decoder": True, "add_cross_attention": True}
"""What a decoder's configuration says besides its family's own."""


@dataclass(frozen=True, kw_only=True)
class Inside:
    """One configuration inside another <-> a family, for the first of some tasks it has."""

    key: str
    tasks: tuple[str, ...]
    says: Mapping[str, Any] = field(default_factory=dict)
    """What the configuration inside says besides its family's own."""

    def names(self) -> frozenset[str]:
        """The key."""
        return frozenset((self.key,))

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The family by its model type."""
        inside = config.get(self.key)
        if not isinstance(inside, Mapping):
            kind = config.get("model_type")
            raise ConfigError(f"config.json of {kind} lacks {self.key}'s configuration")
        own = {k: v for k, v in inside.items() if k not in ("architectures", *READS)}
        found = _family(str(own.get("model_type"))).from_hf(own)
        return {self.key: for_task(found, self.tasks)}

    def write(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The family's, and what is said besides."""
        return {self.key: values[self.key].to_hf() | dict(self.says)}


def _family(model_type: str) -> type[Family]:
    """The family of a model type: the first that has it."""
    for name in dict.fromkeys(ARCHITECTURES.values()):
        if families[name].fields.model_type == model_type:
            return families[name]
    known = {families[name].fields.model_type for name in ARCHITECTURES.values()}
    raise unknown("model_type", model_type, known)


def for_task(family: Family, tasks: tuple[str, ...]) -> Family:
    """The family's class for the first of some tasks that it has classes for."""
    task = next((t for t in tasks if t in family.fields.tasks), None)
    if task is None or "task" not in {f.name for f in fields(family)}:
        return family
    changed: dict[str, Any] = {"task": task}
    return replace(family, **changed)
