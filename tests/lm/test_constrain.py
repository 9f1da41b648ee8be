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
from keifu.lm.tools import FORMATS, HERMES, ToolFormat, forced, read_all
from tests.inference.test_constrain import END, asked, engine, model

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
