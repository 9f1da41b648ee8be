"""A step: what is done to every document of a corpus on its way, as a frozen value of options.

There are two kinds. A `DocumentStep` looks at one document alone, so any process may run it. A
`CorpusStep` also has to know those that came before: its `look` reads one document (in any
process) into a few bytes, and its `judge` sees those bytes in the order of the corpus (in one
process) and says which stay. That is why a corpus can be cleaned in parallel with one result, and
why a broken-off run goes on from the bytes that it noted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeAlias, get_args, get_origin, get_type_hints

from keifu.core.errors import ConfigError, nearest
from keifu.core.registry import Registry
from keifu.data.document import Change, Document, Dropped

Look: TypeAlias = Callable[[Document], bytes]
Verdict: TypeAlias = "Dropped | tuple[int, ...] | None"
"""Dropped, kept (None), or kept without some numbered parts (lines)."""
Judge: TypeAlias = Callable[[int, bytes], Verdict]
"""(the document's number in the corpus, from 1; what `look` saw) -> verdict."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Base of all steps."""


@dataclass(frozen=True, kw_only=True)
class DocumentStep(Step):
    """A step on one document, whoever came before."""

    def start(self) -> Change:
        """The function that does it; whatever is slow to make is made here."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class CorpusStep(Step):
    """A step that compares each document with those before."""

    edits: ClassVar[bool] = False
    """Whether `edit` changes documents, so that later steps must wait for it."""

    def look(self) -> Look:
        """The function that reads what is compared."""
        raise NotImplementedError

    def judge(self) -> Judge:
        """The function that compares, which remembers what it has seen."""
        raise NotImplementedError

    def edit(self, document: Document, parts: tuple[int, ...]) -> Document | Dropped:
        """A document without some parts."""
        raise NotImplementedError


STEPS: Registry[type[Step]] = Registry("data step", "keifu.data.steps", "STEP", Step)


def name_of(step: Step) -> str:
    """The name under which a step is found."""
    return type(step).__module__.rpartition(".")[2].replace("_", "-")


def steps_of(written: Any, where: str = "steps") -> list[Step]:
    """Steps from a recipe's list: names, or {name: {option: value}}.

    Raises:
        ConfigError: it is no such list, or names what is not there: all such faults in one line.
        KeifuError: a step's own check.
    """
    if not isinstance(written, list) or not written:
        raise ConfigError(f"{where}: a list of steps is wanted; known: {', '.join(STEPS)}")
    steps: list[Step] = []
    for number, entry in enumerate(written, 1):
        if isinstance(entry, str):
            entry = {entry: {}}
        if not isinstance(entry, dict) or len(entry) != 1:
            raise ConfigError(f"{where}[{number}]: write a name, or `name: {{option: value}}`")
        ((name, options),) = entry.items()
        steps.append(valued(STEPS[str(name)], options or {}, f"{where}[{number}] {name}"))
    return steps


def valued(cls: type[Any], options: Mapping[str, Any], where: str) -> Any:
    """A dataclass from plain values, each checked against its field's type.

    Raises:
        ConfigError: names every unknown option and every value of a wrong type.
    """
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where}: options are `name: value`, not {options!r}")
    hints = get_type_hints(cls)
    known = [field.name for field in fields(cls) if field.init and not field.metadata.get("given")]
    faults, values = [], {}
    for name, value in options.items():
        if name not in known:
            close = nearest(str(name), known) or known
            faults.append(f"no option {name!r} (nearest: {', '.join(close) or 'there are none'})")
            continue
        whole, value = _fitting(hints[name], value)
        if not whole:
            faults.append(f"{name}: {value!r} is not {_spelt(hints[name])}")
        values[name] = value
    if faults:
        raise ConfigError(f"{where}: {'; '.join(faults)}")
    return cls(**values)


def written(step: Step) -> dict[str, Any]:
    """A step as a recipe writes it, with all of its options; `steps_of` reads it."""
    assert is_dataclass(step)
    given = [field for field in fields(step) if not field.metadata.get("given")]
    return {name_of(step): {field.name: _plain(getattr(step, field.name)) for field in given}}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _fitting(hint: Any, value: Any) -> tuple[bool, Any]:
    """Whether a value is of a type, and the value as that type has it."""
    if get_origin(hint) is UnionType:
        return next(
            (found for one in get_args(hint) if (found := _fitting(one, value))[0]), (False, value)
        )
    if get_origin(hint) is Literal:
        return value in get_args(hint), value
    if get_origin(hint) is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False, value
        parts = [_fitting(get_args(hint)[0], one) for one in value]
        return all(whole for whole, _ in parts), tuple(one for _, one in parts)
    if hint is NoneType:
        return value is None, value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return True, float(value)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool)), value


def _spelt(hint: Any) -> str:
    if get_origin(hint) is UnionType:
        return " or ".join(map(_spelt, get_args(hint)))
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list of {_spelt(get_args(hint)[0])}"
    return {
        "str": "text",
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
    }.get(getattr(hint, "__name__", ""), "nothing" if hint is NoneType else str(hint))
