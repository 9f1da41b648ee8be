"""Frozen dataclasses from plain values (a recipe's YAML) and back: strict, every fault named."""

from __future__ import annotations

import collections.abc
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from keifu.core.errors import ConfigError, KeifuError, nearest

T = TypeVar("T")


def made(cls: type[T], given: Mapping[str, Any], place: str = "") -> T:
    """A dataclass of these values, each converted to its field's type.

    Args:
        place: where the values stand, for errors: "train" makes "train.steps".

    Raises:
        ConfigError: lists unknown fields (with the nearest names), missing ones, and values of
            another type; or the dataclass itself refuses them.
    """
    every = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    missing = [
        f"{place}{name} is missing"
        for name, field in every.items()
        if name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    try:
        found = checked(cls, given, place)
    except ConfigError as wrong:
        raise ConfigError("; ".join([str(wrong), *missing])) from None
    if missing:
        raise ConfigError("; ".join(missing))
    try:
        return cls(**found)
    except KeifuError as refused:
        raise ConfigError(f"{place.rstrip('.')}: {refused}" if place else str(refused)) from None


def checked(cls: type, given: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Values for some of a dataclass's fields, each converted to its field's type.

    Raises:
        ConfigError: lists unknown fields (with the nearest names) and values of another type.
    """
    every = [field.name for field in dataclasses.fields(cls) if field.init]
    hints = typing.get_type_hints(cls)
    faults, found = [], {}
    for name, value in given.items():
        if name not in every:
            faults.append(strange(f"{place}{name}", name, every))
            continue
        try:
            found[name] = converted(hints[name], value, f"{place}{name}")
        except ConfigError as wrong:
            faults.append(str(wrong))
    if faults:
        raise ConfigError("; ".join(faults))
    return found


def strange(place: str, name: str, known: typing.Iterable[str]) -> str:
    """What is said of a name that nobody knows."""
    known = list(known)
    close = nearest(str(name), known, 1)
    if close:
        return f"{place} is no setting (nearest: {close[0]})"
    return f"{place} is no setting (there is {', '.join(known) or 'none'})"


def converted(hint: Any, value: Any, place: str) -> Any:
    """A plain value as a field's type has it. Raises ConfigError."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _any(inner, value, place)
    if origin is Literal or hint is types.NoneType:
        allowed = inner or (None,)
        if value in allowed:
            return value
        raise _wrong(place, f"one of {', '.join(map(repr, allowed))}", value)
    if origin in (tuple, list, collections.abc.Sequence):
        return _tuple(inner if origin is tuple else (inner[0], ...), value, place)
    if origin in (dict, collections.abc.Mapping) or dataclasses.is_dataclass(hint):
        return _mapping(hint, inner, value, place)
    return _plain(hint, value, place)


def told(value: Any) -> Any:
    """A value as YAML or JSON has it: dataclasses are mappings, tuples lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: told(getattr(value, f.name)) for f in fields if f.init}
    if isinstance(value, Mapping):
        return {str(key): told(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [told(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def differences(before: Any, after: Any, place: str = "") -> list[str]:
    """What changed between two plain values, each as "train.steps: 10 -> 20"."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        found = []
        for key in dict.fromkeys([*before, *after]):
            where = f"{place}.{key}" if place else str(key)
            if key in before and key in after:
                found += differences(before[key], after[key], where)
            else:
                found.append(f"{where}: {before.get(key, '-')} -> {after.get(key, '-')}")
        return found
    return [] if before == after else [f"{place}: {before} -> {after}"]


def _mapping(hint: Any, inner: tuple[Any, ...], value: Any, place: str) -> Any:
    """A mapping of one type throughout, or a dataclass."""
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    if not isinstance(value, Mapping):
        raise _wrong(place, "`name: value` lines", value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return made(hint, value, f"{place}.")
    return {str(k): converted(inner[1], v, f"{place}.{k}") for k, v in value.items()}


def _any(inner: tuple[Any, ...], value: Any, place: str) -> Any:
    """The first member of a union that takes the value; one of its very type before others."""
    ordered = sorted(inner, key=lambda hint: hint is not type(value))
    faults = []
    for hint in ordered:
        try:
            return converted(hint, value, place)
        except ConfigError as wrong:
            if hint is not types.NoneType:
                faults.append(str(wrong))
    raise ConfigError(faults[0])


def _tuple(inner: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    """A tuple of one type throughout, or of one a place; a single value is a tuple of one."""
    if isinstance(value, str | int | float) and inner[-1:] == (...,):
        value = [value]
    if not isinstance(value, list | tuple):
        raise _wrong(place, "a list", value)
    if inner[-1:] == (...,):
        return tuple(converted(inner[0], v, f"{place}[{i}]") for i, v in enumerate(value))
    if len(value) != len(inner):
        raise _wrong(place, f"{len(inner)} values", value)
    pairs = zip(inner, value, strict=True)
    return tuple(converted(hint, v, f"{place}[{i}]") for i, (hint, v) in enumerate(pairs))


def _plain(hint: Any, value: Any, place: str) -> Any:
    """A truth, a number, a text or a path."""
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and not isinstance(value, bool):
        if isinstance(value, int):
            return value
        if (number := _number(value)) is not None and number == int(number):
            return int(number)
    if hint is float and not isinstance(value, bool):
        number = _number(value)
        if number is not None:
            return number
    if hint is str and isinstance(value, str):
        return value
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text",
             Path: "a path"}  # fmt: skip
    if hint not in names:
        raise ConfigError(f"{place} cannot be set here: it is no plain value")
    raise _wrong(place, names[hint], value)


def _number(value: Any) -> float | None:
    """A finite number; YAML reads 3e-4 as a text."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _wrong(place: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"{place}: expected {expected}, got {value!r:.80}")
