"""Constraints from strangers: bounded to compile, refused in a line, never a loop or a lie."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from keifu.core.errors import KeifuError
from keifu.inference.constraint import Constraint, ConstraintError
from keifu.inference.engine import Engine
from keifu.inference.grammar import KEPT, Grammars
from keifu.inference.request import Sampling
from tests.inference.test_constrain import END, asked, byte_tokenizer, engine, model

__all__ = ["engine", "model"]  # fixtures

Schema = dict[str, Any]


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    made = Grammars(byte_tokenizer(), [END])
    yield made
    made.close()


def nested(levels: int) -> Schema:
    schema: Schema = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


REFUSED: dict[str, tuple[Schema, str]] = {
    "remote": ({"$ref": "http://169.254.169.254/schema"}, "retriev"),
    "file": ({"$ref": "file:///etc/passwd"}, "retriev"),
    "itself": ({"$ref": "#"}, "NoExtension"),
    "itself twice": (
        {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
        "cannot be followed",
    ),
    "deep": (nested(1000), "deeper than 100"),
    "type": ({"type": "strin"}, "strin"),
    "keyword": ({"not": {"type": "string"}}, "not"),
    "bounds": ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
    "contradiction": ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "nsatisfiable"),
    "empty": ({"type": "string", "pattern": "^a{0,3}$", "minLength": 5}, "nsatisfiable"),
    "look-ahead": ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "anyOf"),
    "5000 properties": (
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5000)}},
        "simpler",
    ),
    "a product of patterns": (
        {"allOf": [{"type": "string", "pattern": f"a.{{{i}}}b"} for i in range(1, 40)]},
        "simpler",
    ),
    "a product of choices": (
        {"allOf": [{"anyOf": [{"type": "object", "properties": {f"x{i}{j}": {}}} for j in range(4)]}
                   for i in range(10)]},
        "too large",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_29_schemas_that_are_refused(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In one line, without the network, and the next one compiles."""
    schema, why = REFUSED[name]
    monkeypatch.setattr(socket.socket, "connect", None)
    begun = time.process_time()
    with pytest.raises(ConstraintError, match=why) as told:
        grammars.compile(Constraint.json(schema))
    assert time.process_time() - begun < 1
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 400
    grammars.compile(Constraint.json({"type": "boolean"}))


TAKEN: dict[str, Schema] = {
    "recursive": {
        "$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}},
        "$ref": "#/$defs/n",
    },
    "20k enum": {"enum": [f"value {i}" for i in range(20_000)]},
    "maxLength": {"type": "string", "maxLength": 10**9},
    "minItems": {"type": "array", "minItems": 10**9, "items": {"type": "integer"}},
    "depth 90": nested(45),
}


@pytest.mark.parametrize("name", TAKEN)
def test_29_schemas_that_only_look_large(engine: Engine, name: str) -> None:
    begun = time.process_time()
    engine.grammars.compile(Constraint.json(TAKEN[name]))
    assert time.process_time() - begun < 2
    (done,) = asked(engine, Constraint.json(TAKEN[name]), max_tokens=20)
    assert done.finish in ("stop", "length")


def test_29_texts_that_are_no_schema() -> None:
    for wrong in ("", "{", "[1]", "5", "[" * 10**5, '"' * (1 << 21)):
        with pytest.raises(ConstraintError) as told:
            Constraint.json(wrong)
        assert len(str(told.value)) < 400
    for long in (Constraint.regex, Constraint.grammar):
        with pytest.raises(ConstraintError, match="at most"):
            long("a" * (1 << 20))
    for options in ([], "yes", [1]):
        with pytest.raises(ConstraintError, match="choices"):
            Constraint.choice(options)  # type: ignore[arg-type]


def test_29_what_is_kept_is_bounded(grammars: Grammars) -> None:
    first = grammars.compile(Constraint.regex("a0"))
    assert grammars.compile(Constraint.regex("a0")) is first
    for i in range(1, KEPT + 5):
        grammars.compile(Constraint.regex(f"a{i}"))
    assert len(grammars._kept) == KEPT
    assert grammars.compile(Constraint.regex("a0")) is not first


def test_30_a_good_constraint_after_a_bad_one(engine: Engine) -> None:
    for bad in (Constraint.regex("["), Constraint.grammar("start: x"), Constraint.grammar("?")):
        with pytest.raises(ConstraintError):
            asked(engine, bad)
        assert asked(engine, Constraint.choice(["ok"]))[0].text == "ok"
    assert engine.pool.free_tokens == engine.pool.capacity


def test_30_a_matcher_past_its_end(grammars: Grammars) -> None:
    """Nothing but the end may come, any number of times; a wrong token changes nothing."""
    matcher = grammars.compile(Constraint.regex("ab")).matcher()
    a, b = byte_tokenizer().encode("ab")
    with pytest.raises(KeifuError, match="forbids"):
        matcher.take(b)
    assert not matcher.take(a)
    with pytest.raises(KeifuError, match="forbids"):
        matcher.take(END)
    branch = matcher.fork()
    assert matcher.take(b)
    for _ in range(3):
        with pytest.raises(KeifuError, match="forbids"):
            matcher.take(a)
        assert matcher.take(END)
    assert not branch.ended
    assert branch.take(b)


def test_30_a_grammar_that_never_ends(engine: Engine) -> None:
    """It goes on to the room's end and says so, or is refused where every step is forced."""
    (done,) = asked(engine, Constraint.grammar('start: ("a" | "b") start'), max_tokens=21)
    assert done.finish == "length"
    assert set(done.text) <= {"a", "b"}
    assert len(done.text) == 21
    with pytest.raises(KeifuError, match="cannot be followed"):
        asked(engine, Constraint.grammar('start: "ab" start'), max_tokens=21)


def test_30_a_grammar_that_grows_too_large_ends_its_request_alone(engine: Engine) -> None:
    other = engine.submit([3], Sampling(max_tokens=30, seed=1))
    with pytest.raises(KeifuError, match="cannot be followed"):
        asked(engine, Constraint.regex("((a{1,1000}){1,1000}){1,1000}"), logit_bias={END: -100.0})
    assert len(other.result().tokens) == 30
    assert asked(engine, Constraint.choice(["ok"]))[0].text == "ok"


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+b", "(a*)*b", "(.*a){20}"])
def test_31_patterns_that_backtracking_cannot_finish(engine: Engine, pattern: str) -> None:
    """The engine is linear: a step costs the same after many characters as after few."""
    begun = time.process_time()
    matcher = engine.grammars.compile(Constraint.regex(pattern)).matcher()
    (a,) = byte_tokenizer().encode("a")
    for _ in range(2000):
        assert not matcher.take(a)
    assert time.process_time() - begun < 10


def test_32_a_json_that_is_cut_off_says_so(engine: Engine) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3}
    for most in range(1, 25):
        (done,) = asked(engine, Constraint.json(schema), max_tokens=most)
        try:
            whole = len(json.loads(done.text)) == 3
        except ValueError:
            whole = False
        assert (done.finish == "stop") == whole
        assert done.finish in ("stop", "length")
