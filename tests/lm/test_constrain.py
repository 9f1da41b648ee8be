"""Forced tool calls in each model's own format, and constraints on their way to other servers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from keifu.core.errors import KeifuError
from keifu.inference.constraint import Constraint
from keifu.inference.engine import Engine
from keifu.inference.request import ParameterError
from keifu.lm.anthropic import AnthropicLM
from keifu.lm.gemini import GeminiLM
from keifu.lm.local import schema_of
from keifu.lm.openai import OpenAILM
from keifu.lm.remote import RemoteLM, RemoteOptions
from keifu.lm.tool_grammar import forced, guided
from keifu.lm.tools import FORMATS, HERMES, LLAMA, ToolFormat, read_all
from tests.inference.test_constrain import END, asked, byte_tokenizer, engine, model

__all__ = ["engine", "model"]  # fixtures

DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
PAIR = {
    "type": "object",
    "properties": {"a": DIGIT, "b": DIGIT},
    "required": ["a", "b"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "add", "parameters": PAIR}},
    {"type": "function", "function": {"name": "mul", "parameters": PAIR}},
]


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("one", [True, False])
def test_forced_calls_are_calls(engine: Engine, form: ToolFormat, one: bool) -> None:
    """A random model's forced output reads as calls and nothing else, in every format."""
    counts = set()
    for choice in asked(engine, forced(form, TOOLS, {}, one=one), n=4, max_tokens=900):
        assert choice.finish == "stop"
        text, calls = read_all(choice.text, form, ["add", "mul"])
        assert text == ""
        counts.add(len(calls))
        for call in calls:
            arguments = json.loads(call.arguments)
            assert set(arguments) == {"a", "b"}
            assert all(0 <= v <= 9 for v in arguments.values())
    assert counts <= ({1} if one or form.several is None else set(range(1, 9)))


def test_a_marker_that_is_one_token_is_written_as_that_token(engine: Engine) -> None:
    wanted = forced(HERMES, TOOLS[:1], {"<tool_call>": END}, one=True)
    assert f"<[{END}]>" in wanted.text
    assert '"<tool_call>' not in wanted.text
    assert '</tool_call>"' in wanted.text


def follow(engine: Engine, wanted: Constraint, text: str) -> tuple[bool, bool]:
    """Whether a text may be written, and whether it may end there."""
    matcher = engine.grammars.compile(wanted).matcher()
    ids = byte_tokenizer().encode(text)
    if matcher.valid(ids) < len(ids):
        return False, False
    for token in ids:
        matcher.take(token)
    return True, matcher.ended or bool(matcher.valid([END]))


WHOLE = {
    "hermes": '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>',
    "tagged": '<function=add>{"a": 1, "b": 2}</function>',
    "mistral": '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": 2}}]',
    "mistral-args": '[TOOL_CALLS]add[ARGS]{"a": 1, "b": 2}',
    "llama": '{"name": "add", "parameters": {"a": 1, "b": 2}}',
}


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
def test_a_call_that_is_begun_is_one_of_the_tools(engine: Engine, form: ToolFormat) -> None:
    """Where the model may choose, text is free, and calls follow their schemas to their ends."""
    wanted, call = guided(form, TOOLS, {}, ()), WHOLE[form.name]
    text, calls = read_all(call, form, ["add"])
    assert (text, len(calls)) == ("", 1)
    for free in ("", "Hello {you} <there>\n[1, 2] \n", '{"answer": 3}', "<tool", '"add"'):
        assert follow(engine, wanted, free) == (True, True), free
    before = "" if form.at_start else "I will add.\n"
    assert follow(engine, wanted, before + call) == (True, True)
    begun = call.index("add") + 1
    for at in range(begun, len(call)):
        assert follow(engine, wanted, before + call[:at]) == (True, False), call[:at]
    assert follow(engine, wanted, before + call.replace("add", "adx")) == (False, False)
    assert follow(engine, wanted, before + call.replace("1", "12")) == (False, False)
    assert follow(engine, wanted, before + call.replace('"b": 2', '"c": 2')) == (False, False)
    if form is HERMES:
        assert follow(engine, wanted, f"{call}\n{call} And so on.") == (True, True)
    if form is LLAMA:
        assert follow(engine, wanted, "<|python_tag|>" + call) == (True, True)
        assert follow(engine, wanted, "First: " + call.replace("add", "x")) == (True, True)


def test_markers_that_are_tokens_and_others_in_the_text(engine: Engine) -> None:
    """A model that begins a call with a token of its own writes it to its end."""
    wanted = guided(HERMES, TOOLS, {"<tool_call>": END}, ())
    matcher = engine.grammars.compile(wanted).matcher()
    for token in byte_tokenizer().encode("Well, "):
        matcher.take(token)
    assert matcher.valid([END]) == 1
    assert follow(engine, wanted, "<tool_call>nothing") == (True, True), "it is text, spelt out"


def test_json_may_come_instead_of_a_call(engine: Engine) -> None:
    other: dict[str, Any] = {"type": "object", "properties": {"z": DIGIT}, "required": ["z"]}
    other["additionalProperties"] = False
    kinds = set()
    for choice in asked(engine, forced(HERMES, TOOLS, {}, one=True, instead=other), n=16):
        text, calls = read_all(choice.text, HERMES, ["add", "mul"])
        assert bool(text) != bool(calls)
        kinds.add(set(json.loads(text)) == {"z"} if text else "call")
    assert kinds <= {True, "call"}


def test_response_formats() -> None:
    assert schema_of(None) is schema_of({"type": "text"}) is None
    assert schema_of({"type": "json_object"}) == {"type": "object"}
    assert schema_of({"type": "json_schema", "json_schema": {"schema": PAIR}}) == PAIR
    with pytest.raises(KeifuError, match="response_format"):
        schema_of({"type": "json_schema"})


def test_other_servers_get_it_in_their_own_words() -> None:
    """JSON schemas go to every protocol, the rest to servers that know vLLM's field."""
    asked = [{"role": "user", "content": "Hi"}]
    schema, regex = Constraint.json(PAIR), Constraint.regex("a+")
    options = RemoteOptions(base_url="http://127.0.0.1:1/v1", api_key="k", max_output=9)

    def sent(lm: RemoteLM, constraint: Constraint) -> Any:
        return lm.chat_request(asked, lm.ask({"constraint": constraint})).body

    server, claude = OpenAILM("m", options), AnthropicLM("m", options)
    gemini = GeminiLM("m", options)
    assert sent(server, schema)["structured_outputs"] == {"json": PAIR}
    assert sent(server, regex)["structured_outputs"] == {"regex": "a+"}
    choice = sent(server, Constraint.choice(["x", "y"]))
    assert choice["structured_outputs"] == {"choice": ["x", "y"]}
    vendor = OpenAILM("m", RemoteOptions(api_key="k"))
    assert sent(vendor, schema)["response_format"]["json_schema"]["schema"] == PAIR
    assert sent(claude, schema)["output_config"]["format"]["schema"] == PAIR
    assert sent(gemini, schema)["generationConfig"]["responseJsonSchema"] == PAIR
    for lm in (vendor, claude, gemini):
        with pytest.raises(ParameterError, match="regex"):
            sent(lm, regex)
