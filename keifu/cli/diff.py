"""`keifu diff`: what one family changed against another, printed from their specifications."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any

from keifu.cli.options import Argument, Option
from keifu.cli.table import table

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One place where two values differ; None on a side means that it has no such part."""

    path: str
    a: str | None
    b: str | None


def differences(a: object, b: object, path: str = "") -> Iterator[Row]:
    """Where two values differ, from the outside in.

    Two dataclasses of one type are compared field by field, mappings key by key, sequences item by
    item; the same difference in several items is one row (`blocks[0..29,31]`). Parts of different
    types differ as a whole, but for a stack and one that is more (segments with memory). The path
    of a difference between the two values themselves is empty.
    """
    if a == b and type(a) is type(b):
        return
    if is_dataclass(a) and is_dataclass(b) and type(a) is type(b):
        for field in fields(a):
            inner = f"{path}.{field.name}" if path else field.name
            yield from differences(getattr(a, field.name), getattr(b, field.name), inner)
    elif not path and is_dataclass(a) and is_dataclass(b) and _akin(a, b):
        yield Row("", type(a).__name__, type(b).__name__)
        own, other = ({f.name: getattr(v, f.name) for f in fields(v)} for v in (a, b))
        for name in own | other:
            yield from _pair(own.get(name, _NONE), other.get(name, _NONE), name)
    elif isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from _pair(a.get(key, _NONE), b.get(key, _NONE), f"{path}[{key!r}]")
    elif _is_sequence(a) and _is_sequence(b):
        yield from _sequences(list(a), list(b), path)  # type: ignore[call-overload]
    else:
        yield Row(path, written(a), written(b))


def _akin(a: object, b: object) -> bool:
    """Whether one's type is the other's with more fields."""
    return isinstance(a, type(b)) or isinstance(b, type(a))


def written(value: object) -> str:
    """A value as one would write it, leaving out fields that have their default."""
    if is_dataclass(value) and not isinstance(value, type):
        if own := _own_repr(value):
            return own
        parts = []
        for field in fields(value):
            mine = getattr(value, field.name)
            if mine != field.default:
                parts.append(f"{field.name}={written(mine)}")
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, list | tuple):
        runs = [
            written(item) if count == 1 else f"{count} x {written(item)}"
            for item, count in _runs(value)
        ]
        return f"[{', '.join(runs)}]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, str) else repr(value)


def _own_repr(value: Any) -> str | None:
    """How a value says itself that it is written; None where that is only its fields."""
    return None if type(value).__dataclass_params__.repr else repr(value)


_NONE = object()


def _pair(a: object, b: object, path: str) -> Iterator[Row]:
    if a is _NONE or b is _NONE:
        yield Row(path, None if a is _NONE else written(a), None if b is _NONE else written(b))
    else:
        yield from differences(a, b, path)


def _sequences(a: list[object], b: list[object], path: str) -> Iterator[Row]:
    """Item by item; the same difference at several places is one row that names them all."""
    length = max(len(a), len(b))
    pairs = [(a[i] if i < len(a) else _NONE, b[i] if i < len(b) else _NONE) for i in range(length)]
    places: dict[Row, list[int]] = {}
    start = 0
    for (left, right), count in _runs(pairs):
        for row in _pair(left, right, ""):
            places.setdefault(row, []).extend(range(start, start + count))
        start += count
    for row, where in places.items():
        inner = row.path if row.path.startswith("[") else row.path and f".{row.path}"
        yield Row(f"{path}[{_spans(where)}]{inner}", row.a, row.b)


def _spans(numbers: list[int]) -> str:
    """Ascending numbers, runs of them as `first..last`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    return ",".join("..".join(map(str, span)) for span in spans)


def _runs(items: Sequence[Any]) -> list[tuple[Any, int]]:
    runs: list[tuple[Any, int]] = []
    for item in items:
        if runs and runs[-1][0] == item:
            runs[-1] = (item, runs[-1][1] + 1)
        else:
            runs.append((item, 1))
    return runs


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def compare(a: str, b: str) -> list[Row]:
    """The differences between two families' specifications, both at their test sizes."""
    from keifu.families import families

    return list(differences(families[a].tiny().spec(), families[b].tiny().spec()))


def command(
    a: Annotated[str, Argument("A")],
    b: Annotated[str, Argument("B")],
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """What family B changed against family A: `keifu diff llama qwen2`.

    Two families are compared as specifications, at the sizes of their tests: which parts the
    blocks are made of, how the parts are wired, which constants they use.
    """
    rows = compare(a, b)
    if as_json:
        listed = [{"path": row.path, "a": row.a, "b": row.b} for row in rows]
        print(json.dumps({"schema_version": SCHEMA, "a": a, "b": b, "differences": listed}))
    elif rows:
        print(table(["part", a, b], [[row.path, row.a or "-", row.b or "-"] for row in rows]))
    else:
        print(f"{a} and {b} are the same parts in the same places")
