"""What an output must be: JSON of a schema, a match of a regex, a choice, a text of a grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from keifu.core.errors import KeifuError

MOST = {"json": 1 << 20, "choice": 1 << 20, "regex": 1 << 16, "grammar": 1 << 18, "lark": 1 << 22}
"""Characters of a constraint, by kind."""
DEPTH = 100
"""Levels of a schema; one that is deeper is refused before anything walks it."""


class ConstraintError(KeifuError):
    """A constraint that cannot be followed: what it is, and why."""


@dataclass(frozen=True)
class Constraint:
    """What the whole output must be, whatever else is asked; made by one of the methods below."""

    kind: Literal["json", "regex", "choice", "grammar", "lark"]
    text: str
    """The schema or the choices as JSON, the pattern, the grammar."""
    free: bool = False
    """Whether it is of parts of a text that is free otherwise, and may end as any text does."""

    def __post_init__(self) -> None:
        if self.kind not in MOST:
            raise ConstraintError(f"no constraint {self.kind!r}: json, regex, choice or grammar")
        if len(self.text) > MOST[self.kind]:
            raise ConstraintError(
                f"a {self.kind} constraint of {len(self.text)} characters is not allowed: at most "
                f"{MOST[self.kind]}"
            )

    @property
    def value(self) -> Any:
        """The schema, the list of choices, or the text of the rest."""
        return json.loads(self.text) if self.kind in ("json", "choice") else self.text

    def as_format(self) -> dict[str, Any] | None:
        """OpenAI's `response_format`, which knows schemas alone; None for the rest."""
        if self.kind != "json":
            return None
        return {"type": "json_schema", "json_schema": {"name": "output", "schema": self.value}}

    @classmethod
    def json(cls, schema: Mapping[str, Any] | str | None = None) -> Constraint:
        """A JSON value of a JSON Schema (a mapping, or its text); None: any JSON object."""
        if isinstance(schema, str):
            if len(schema) > MOST["json"]:
                return cls("json", schema)
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise ConstraintError(f"the JSON schema is not JSON: {_cut(error)}") from None
        schema = {"type": "object"} if schema is None else schema
        if not isinstance(schema, Mapping | bool):
            raise ConstraintError(f"a JSON schema is an object, not {_cut(repr(schema))}")
        if _deeper(schema, DEPTH):
            raise ConstraintError(f"the JSON schema is nested deeper than {DEPTH} levels")
        try:
            return cls("json", json.dumps(schema, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ConstraintError(f"the JSON schema is not plain JSON: {_cut(error)}") from None

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """A text that matches a pattern from its first to its last character.

        The engine is linear: there are no look-arounds and no back-references.
        """
        return cls("regex", pattern)

    @classmethod
    def choice(cls, options: Sequence[str]) -> Constraint:
        """One of these texts."""
        if isinstance(options, str) or not options or not all(isinstance(o, str) for o in options):
            raise ConstraintError(f"choices are a list of texts, not {_cut(repr(options))}")
        return cls("choice", json.dumps(list(options), ensure_ascii=False))

    @classmethod
    def grammar(cls, text: str) -> Constraint:
        """A text of a grammar: Lark's syntax (`start: ...`) or GBNF (`root ::= ...`)."""
        return cls("grammar", text)


def _deeper(value: Any, most: int) -> bool:
    """Whether a JSON value has more levels than `most`; found without recursion."""
    level = [value]
    for _ in range(most):
        deeper = []
        for item in level:
            inner = item.values() if isinstance(item, Mapping) else item
            if isinstance(item, Mapping | list | tuple):
                deeper += [i for i in inner if isinstance(i, Mapping | list | tuple)]
        if not deeper:
            return False
        level = deeper
    return True


def _cut(why: object) -> str:
    text = " ".join(str(why).split())
    return text if len(text) <= 200 else text[:200] + "…"
