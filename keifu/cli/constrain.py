"""Flags that say what an answer must be: JSON of a schema, a match, a choice, a grammar's text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from keifu.cli.options import Option
from keifu.core.errors import KeifuError

if TYPE_CHECKING:
    from keifu.inference.constraint import Constraint

MOST = 1 << 20
"""Bytes of a file that holds a schema or a grammar."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What the output must be; at most one of these."""

    json_schema: str | None = field(default=None, metadata={"option": Option(metavar="FILE|TEXT")})
    """Answer in JSON of this schema: a file, or the schema itself"""
    regex: str | None = None
    """Answer with a match of this pattern"""
    choice: tuple[str, ...] = field(default=(), metadata={"option": Option(commas=True)})
    """Answer with one of these texts"""
    grammar: str | None = field(default=None, metadata={"option": Option(metavar="FILE|TEXT")})
    """Answer with a text of this grammar (Lark or GBNF): a file, or the grammar itself"""

    def __post_init__(self) -> None:
        given = [n for n in ("json_schema", "regex", "choice", "grammar") if getattr(self, n)]
        if len(given) > 1:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in given[:2])
            raise KeifuError(f"{flags} both say what the answer must be: give one")

    def options(self) -> dict[str, Constraint]:
        """The LM's option, if there is any."""
        from keifu.inference.constraint import Constraint

        if self.json_schema is not None:
            return {"constraint": Constraint.json(_text(self.json_schema, "{"))}
        if self.regex is not None:
            return {"constraint": Constraint.regex(self.regex)}
        if self.choice:
            return {"constraint": Constraint.choice(self.choice)}
        if self.grammar is not None:
            return {"constraint": Constraint.grammar(_text(self.grammar, "\n"))}
        return {}


def _text(given: str, mark: str) -> str:
    """What is in a file, or what was given, where a mark shows that it is the text itself."""
    if mark in given or ":" in given.replace(":\\", ""):
        return given
    path = Path(given)
    try:
        with path.open("rb") as file:
            data = file.read(MOST + 1)
    except OSError as error:
        raise KeifuError(f"cannot read {given}: {error.strerror}") from None
    if len(data) > MOST:
        raise KeifuError(f"{given} is larger than {MOST >> 20} MB")
    return data.decode("utf-8", "replace")
