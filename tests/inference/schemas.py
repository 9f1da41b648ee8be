"""Fifty JSON schemas whose instances have bounded lengths, and a bound of each one's bytes."""

from __future__ import annotations

import json
from typing import Any

Schema = dict[str, Any]
LETTER = 12
"""Most bytes of one character of a JSON string: two \\uXXXX."""


def text(most: int, least: int = 0) -> Schema:
    return {"type": "string", "minLength": least, "maxLength": most}


def whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def record(optional: tuple[str, ...] = (), **fields: Schema) -> Schema:
    required = [name for name in fields if name not in optional]
    return {
        "type": "object",
        "properties": fields,
        "required": required,
        "additionalProperties": False,
    }


def row(items: Schema, most: int, least: int = 0) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def one_of(*values: Any) -> Schema:
    return {"enum": list(values)}


def either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


FLAG: Schema = {"type": "boolean"}
NOTHING: Schema = {"type": "null"}
POINT = record(x=whole(-99, 99), y=whole(-99, 99))
PERSON = record(("email",), name=text(8, 1), age=whole(0, 130), email=text(6))
CENTS: Schema = {"type": "number", "minimum": 0, "maximum": 10, "multipleOf": 0.25}


def named(pattern: str) -> Schema:
    return {"type": "string", "pattern": pattern}


def shaped(form: str) -> Schema:
    return {"type": "string", "format": form}


TREE: Schema = {
    "$defs": {
        "leaf": record(v=whole(0, 9)),
        "node": record(l={"$ref": "#/$defs/leaf"}, r={"$ref": "#/$defs/leaf"}),
    },
    "$ref": "#/$defs/node",
}

SCHEMAS: tuple[Schema, ...] = (
    FLAG,
    NOTHING,
    whole(0, 9),
    whole(-1000, 1000),
    CENTS,
    text(0),
    text(1, 1),
    text(10),
    text(6, 6),
    one_of("red", "green", "blue"),
    one_of(1, "one", None, True, [1], {"a": 1}),
    {"const": {"fixed": [1, 2, {"deep": None}]}},
    named("^[a-z]{3}-[0-9]{2}$"),
    named("^(alpha|beta|gamma)+$") | {"maxLength": 15},
    named("^\\d{4}$"),
    named("^[A-Fa-f0-9]{6}$"),
    shaped("date"),
    shaped("uuid"),
    shaped("ipv4"),
    row(whole(0, 9), 5),
    row(whole(10, 20), 3, 3),
    row(FLAG, 8, 1),
    row(text(3), 4),
    row(one_of("a", "b"), 0),
    row(row(whole(0, 5), 3), 3),
    row(POINT, 3, 1),
    {"type": "array", "prefixItems": [whole(0, 9), text(3), FLAG], "items": False, "minItems": 3},
    record(),
    record(a=whole(0, 9)),
    record(("a",), a=whole(0, 9)),
    record(("a", "b", "c"), a=FLAG, b=whole(0, 9), c=text(2)),
    record(name=text(10, 1), age=whole(0, 120)),
    POINT,
    PERSON,
    record(people=row(PERSON, 2)),
    record(a=record(b=record(c=record(d=whole(0, 9))))),
    record(kind=one_of("x"), value=either(whole(0, 9), text(4))),
    either(whole(0, 9), text(5), NOTHING),
    either(record(kind={"const": "circle"}, r=whole(1, 9)),
           record(kind={"const": "square"}, side=whole(1, 9))),
    {"oneOf": [record(k={"const": "a"}, x=whole(0, 9)), record(k={"const": "b"}, y=text(3))]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 12}]},
    TREE,
    {"type": ["string", "null"], "maxLength": 4},
    {"type": ["integer", "boolean"], "minimum": 0, "maximum": 9},
    record(título=text(5), 名前=text(3)),
    {"enum": ["ünï", "日本", "🙂", 'quote"d', "back\\slash", "new\nline"]},
    record(("note",), id=whole(1, 10**6), tags=row(one_of("new", "hot", "old"), 3), note=text(8)),
    record(city=text(9, 1), when=shaped("date"), cost=CENTS),
    record(ok=FLAG, error=either(NOTHING, record(code=whole(400, 599), text=text(8)))),
    record(matrix=row(row(whole(-9, 9), 3, 3), 3, 3), label=text(6)),
)  # fmt: skip


def size(value: Any) -> int:
    """Bytes of a value as JSON."""
    return len(json.dumps(value).encode())


def longest(schema: Schema, defs: Schema | None = None) -> int:
    """A bound on the bytes of an instance, and so on its tokens; an error where there is none."""
    defs = schema.get("$defs", defs)

    def inner(part: Schema) -> int:
        return longest(part, defs)

    match schema:
        case {"$ref": ref}:
            assert defs is not None
            return inner(defs[ref.rsplit("/", 1)[1]])
        case {"enum": values}:
            return max(map(size, values))
        case {"const": value}:
            return size(value)
        case {"anyOf": options} | {"oneOf": options}:
            return max(map(inner, options))
        case {"type": "array", "prefixItems": items}:
            return 2 + sum(inner(item) + 2 for item in items)
        case {"type": "array", "items": items, "maxItems": most}:
            return 2 + int(most) * (inner(items) + 2)
        case {"type": "object", "properties": fields}:
            return 2 + sum(size(name) + 4 + inner(part) for name, part in fields.items())
        case {"maxLength": most}:
            return 2 + LETTER * int(most)
    return 48  # a number, a flag, null, a text whose pattern or format says how long it is
