"""Constrained outputs through HTTP: the openai and the anthropic client, every way to ask."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import openai
import pytest
import torch

from keifu.inference.engine import Engine
from keifu.lm.local import LocalLM
from keifu.nn.stack import StackModule
from keifu.text.marks import Marks
from keifu.text.tokenizer import Tokenizer
from tests.inference.schemas import PERSON
from tests.inference.test_constrain import END, byte_tokenizer, model
from tests.server.harness import Running, running

__all__ = ["model"]  # fixtures

TEMPLATE = "{# <tool_call> #}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
USER: list[Any] = [{"role": "user", "content": "Go"}]
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
PAIR = {
    "type": "object",
    "properties": {"a": DIGIT, "b": DIGIT},
    "required": ["a", "b"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": PAIR}} for name in ("add", "mul")
]
CLAUDE_TOOLS: list[Any] = [{"name": name, "input_schema": PAIR} for name in ("add", "mul")]


@pytest.fixture(scope="module")
def lm(model: StackModule) -> Iterator[LocalLM]:
    """A model that knows nothing, over bytes."""
    torch.set_num_threads(1)
    plain = byte_tokenizer()
    tokenizer = Tokenizer(plain._rust, Marks(named={"eos": END}, templates={"default": TEMPLATE}))
    engine = Engine(model, tokenizer, context=1024, parallel=4, budget=1 << 24, end_ids=[END])
    made = LocalLM("tiny", engine, tokenizer, {})
    yield made
    made.close()


@pytest.fixture(scope="module")
def house(lm: LocalLM) -> Iterator[Running]:
    with running(lambda source: lm, parallel=4) as house:
        yield house


@pytest.fixture
def client(house: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(house: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=house.url, api_key="x", max_retries=0) as client:
        yield client


SETTINGS: dict[str, Any] = {"model": "fake", "temperature": 1.5, "seed": 3, "max_tokens": 400}
FORM = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
WAYS: dict[str, dict[str, Any]] = {
    "response_format": {"response_format": FORM},
    "guided_json": {"extra_body": {"guided_json": PERSON}},
    "guided_json as text": {"extra_body": {"guided_json": json.dumps(PERSON)}},
    "json_schema": {"extra_body": {"json_schema": PERSON}},
    "structured json": {"extra_body": {"structured_outputs": {"json": PERSON}}},
    "guided_regex": {"extra_body": {"guided_regex": "[ab]{3}-[0-9]{2}"}},
    "structured regex": {"extra_body": {"structured_outputs": {"regex": "[ab]{3}-[0-9]{2}"}}},
    "guided_choice": {"extra_body": {"guided_choice": ["yes", "no"]}},
    "structured choice": {"extra_body": {"structured_outputs": {"choice": ["yes", "no"]}}},
    "guided_grammar": {"extra_body": {"guided_grammar": 'start: "(" /[xy]{4}/ ")"'}},
    "structured grammar": {
        "extra_body": {"structured_outputs": {"grammar": 'root ::= "(" [xy] [xy] [xy] [xy] ")"'}}
    },
    "grammar": {"extra_body": {"grammar": 'root ::= "(" [xy] [xy] [xy] [xy] ")"'}},
}


def holds(name: str, text: str) -> None:
    if "json" in name or name == "response_format":
        jsonschema.Draft202012Validator(PERSON).validate(json.loads(text))
    elif "regex" in name:
        assert re.fullmatch("[ab]{3}-[0-9]{2}", text)
    elif "choice" in name:
        assert text in ("yes", "no")
    else:
        assert re.fullmatch(r"\([xy]{4}\)", text)


@pytest.mark.parametrize("name", WAYS)
def test_every_way_to_ask(client: openai.OpenAI, name: str) -> None:
    """Whole and streamed, chats and completions, several outputs and log-probabilities."""
    asked = {**SETTINGS, **WAYS[name]}
    done = client.chat.completions.create(
        messages=USER, n=3, logprobs=True, top_logprobs=2, **asked
    )
    assert [c.finish_reason for c in done.choices] == ["stop"] * 3
    for choice in done.choices:
        text = choice.message.content
        holds(name, text)
        tokens = [t for t in choice.logprobs.content if t.token != "<end>"]
        assert b"".join(bytes(t.bytes) for t in tokens).decode() == text
        assert all(len(t.top_logprobs) == 2 for t in tokens)
    chunks = client.chat.completions.create(messages=USER, stream=True, **asked)
    streamed = [c.choices[0] for c in chunks if c.choices]
    text = "".join(c.delta.content or "" for c in streamed)
    holds(name, text)
    assert streamed[-1].finish_reason == "stop"
    again = client.chat.completions.create(messages=USER, **asked)
    assert again.choices[0].message.content == text, "the same seed"
    plain = client.completions.create(prompt="Go", **(asked if name != "response_format" else
                                      {**SETTINGS, "extra_body": asked_body()}))  # fmt: skip
    holds(name, plain.choices[0].text)
    assert plain.choices[0].finish_reason == "stop"


def asked_body() -> dict[str, Any]:
    """The OpenAI client has no response_format for completions."""
    return {"response_format": FORM}


def test_json_object(client: openai.OpenAI) -> None:
    """Any object; what the room cuts says so."""
    asked = {**SETTINGS, "max_tokens": 60, "n": 4, "response_format": {"type": "json_object"}}
    for choice in client.chat.completions.create(messages=USER, **asked).choices:
        assert choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)
        else:
            assert choice.finish_reason == "length"


def test_what_is_refused_is_refused_at_once(client: openai.OpenAI) -> None:
    bad_form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strin"}}}
    for more in (
        {"response_format": bad_form},
        {"extra_body": {"guided_regex": "["}},
        {"extra_body": {"guided_regex": "a", "guided_choice": ["a"]}},
        {"extra_body": {"guided_grammar": "?"}},
        {"stop": ["a"], "extra_body": {"guided_regex": "a+"}},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "div"}}},
    ):
        with pytest.raises(openai.BadRequestError) as told:
            client.chat.completions.create(messages=USER, **{**SETTINGS, **more})  # type: ignore[call-overload]
        assert "\n" not in told.value.message
    assert client.chat.completions.create(messages=USER, **{**SETTINGS, **WAYS["guided_choice"]})


def pair(text: str) -> None:
    jsonschema.Draft202012Validator(PAIR).validate(json.loads(text))


NAMED = {"type": "function", "function": {"name": "mul"}}


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_openai_calls_that_must_be(client: openai.OpenAI, choice: Any) -> None:
    asked = {**SETTINGS, "tools": TOOLS, "tool_choice": choice, "max_tokens": 700}
    for answer in client.chat.completions.create(messages=USER, n=3, **asked).choices:
        assert answer.finish_reason == "tool_calls"
        calls = answer.message.tool_calls
        assert answer.message.content is None
        for call in calls:
            assert call.function.name == "mul" if choice == NAMED else ("add", "mul")
            pair(call.function.arguments)
        assert len(calls) == 1 or choice == "required"
    chunks = client.chat.completions.create(messages=USER, stream=True, **asked)
    parts = [t for c in chunks for t in (c.choices[0].delta.tool_calls or ()) if c.choices]
    for index in {p.index for p in parts}:
        pair("".join(p.function.arguments or "" for p in parts if p.index == index))


def test_calls_that_the_model_chooses_follow_their_schemas(client: openai.OpenAI) -> None:
    """The bias makes it begin a call; stop strings are allowed, as the text is free."""
    bias = {str(byte_tokenizer().encode("<")[0]): 100}
    asked = {**SETTINGS, "tools": TOOLS, "max_tokens": 300, "logit_bias": bias}
    done = client.chat.completions.create(messages=USER, **asked)
    assert set(done.choices[0].message.content) == {"<"}
    for tools in (TOOLS, unfollowed()):
        free = client.chat.completions.create(
            messages=USER, stop=["e"], **{**SETTINGS, "tools": tools}
        )
        assert "e" not in (free.choices[0].message.content or "")
    with pytest.raises(openai.BadRequestError, match="not"):
        client.chat.completions.create(messages=USER, **{**SETTINGS, "tools": unfollowed(True)})


def unfollowed(strict: bool = False) -> list[Any]:
    """A tool whose schema has a word that cannot be kept to."""
    schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    function: dict[str, Any] = {"name": "odd", "parameters": schema}
    return [{"type": "function", "function": function | ({"strict": True} if strict else {})}]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "mul"}], ids=str)
def test_anthropic_calls_that_must_be(claude: anthropic.Anthropic, choice: Any) -> None:
    asked: dict[str, Any] = {
        "model": "fake",
        "max_tokens": 700,
        "messages": USER,
        "tools": CLAUDE_TOOLS,
        "tool_choice": choice,
    }
    done = claude.messages.create(**asked)
    assert done.stop_reason == "tool_use"
    assert done.content
    for block in done.content:
        assert block.type == "tool_use"
        assert block.name in (["mul"] if choice["type"] == "tool" else ["add", "mul"])
        pair(json.dumps(block.input))
    with claude.messages.stream(**asked) as stream:
        last = stream.get_final_message()
    assert last.stop_reason == "tool_use"
    for block in last.content:
        assert block.type == "tool_use"
        pair(json.dumps(block.input))
