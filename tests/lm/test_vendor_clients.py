"""The vendors' official clients drive the same local server; our request JSON equals theirs.

Left out of the comparison, because it is not the request: headers (versions, telemetry).
The key and the protocol's version header are compared. Google's client spells two fields in
snake case; the proto JSON mapping takes either spelling, so they are compared in one.
"""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest

from keifu.inference.request import Message
from keifu.lm import load
from keifu.lm.anthropic import AnthropicLM
from keifu.lm.gemini import GeminiLM
from keifu.lm.openai import OpenAILM
from tests.lm.fake_server import FakeServer

PNG = base64.b64encode(b"\x89PNG not really").decode()
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "Weather now.", "parameters": SCHEMA},
    }
]
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Kyoto"}'},
}
CHAT: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this, and the weather there? 系譜"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        ],
    },
    {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": '{"sky": "clear"}'},
    {"role": "user", "content": "And tomorrow?"},
]


SPELLINGS = {"mime_type": "mimeType", "parameters_json_schema": "parametersJsonSchema"}


def spelled(value: Any) -> Any:
    if isinstance(value, dict):
        return {SPELLINGS.get(k, k): spelled(v) for k, v in value.items()}
    return [spelled(v) for v in value] if isinstance(value, list) else value


def same(server: FakeServer, count: int = 2) -> Any:
    """The one body that all requests had; their paths are equal too."""
    first, *rest = server.requests
    assert len(rest) == count - 1
    for other in rest:
        assert other.path == first.path
        assert spelled(other.body) == first.body
    return first


def test_openai_chat(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import openai

    monkeypatch.setattr(OpenAILM, "vendor_url", f"{server.url}/v1")
    choice = {"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}
    server.say(server.sse({"choices": [choice]}, done=True))
    ours = load("openai:gpt-4o", api_key="sk-test")
    name = {"type": "function", "function": {"name": "weather"}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    out = ours.chat(
        CHAT,
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=-0.1,
        seed=7,
        stop=("\n",),
        n=1,
        logprobs=2,
        logit_bias={15: -100},
        tools=TOOLS,
        tool_choice=name,
        response_format=form,
    )
    assert out.text == "hi"
    theirs = openai.OpenAI(api_key="sk-test", base_url=f"{server.url}/v1", max_retries=0)
    stream = theirs.chat.completions.create(
        model="gpt-4o",
        messages=CHAT,  # type: ignore[arg-type]
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=-0.1,
        seed=7,
        stop=["\n"],
        n=1,
        logprobs=True,
        top_logprobs=2,
        logit_bias={"15": -100},
        tools=TOOLS,  # type: ignore[arg-type]
        tool_choice=name,  # type: ignore[arg-type]
        response_format=form,  # type: ignore[arg-type]
        stream=True,
        stream_options={"include_usage": True},
    )
    assert "".join(c.choices[0].delta.content or "" for c in stream) == "hi"
    assert same(server).path == "/v1/chat/completions"
    assert {r.headers["authorization"] for r in server.requests} == {"Bearer sk-test"}


def test_openai_completion_and_embeddings(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openai

    monkeypatch.setattr(OpenAILM, "vendor_url", f"{server.url}/v1")
    choice = {"index": 0, "text": "!", "finish_reason": "length"}
    server.say(server.sse({"choices": [choice]}, done=True))
    ours = load("openai:davinci-002", api_key="k")
    assert ours.complete("Hello", max_tokens=1, logprobs=3, temperature=0).text == "!"
    theirs = openai.OpenAI(api_key="k", base_url=f"{server.url}/v1", max_retries=0)
    list(
        theirs.completions.create(
            model="davinci-002",
            prompt="Hello",
            max_tokens=1,
            logprobs=3,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert same(server).path == "/v1/completions"

    data = [{"index": 0, "embedding": "AACAPwAAAMA="}, {"index": 1, "embedding": "AAAAAAAAAD8="}]
    server.say(server.json({"data": data, "model": "e", "usage": {}}))
    vectors = ours.embed(["a", "b"])
    made = theirs.embeddings.create(model="davinci-002", input=["a", "b"])
    assert vectors == [d.embedding for d in made.data] == [[1.0, -2.0], [0.0, 0.5]]
    assert same(server).path == "/v1/embeddings"


def anthropic_events(text: str) -> list[tuple[str, dict[str, Any]]]:
    message = {
        **{"id": "m", "type": "message", "role": "assistant", "content": [], "model": "c"},
        **{"stop_reason": None, "stop_sequence": None},
        "usage": {"input_tokens": 3, "output_tokens": 1},
    }
    block = {"type": "text", "text": ""}
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": end, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    return [(e["type"], e) for e in events]


ANTHROPIC_MESSAGES: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this, and the weather there? 系譜"},
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/png", "data": PNG},
            },
        ],
    },
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Let me look."},
            {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Kyoto"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "call_1", "content": '{"sky": "clear"}'},
            {"type": "text", "text": "And tomorrow?"},
        ],
    },
]


def test_anthropic_messages(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import anthropic

    monkeypatch.setattr(AnthropicLM, "vendor_url", server.url)
    server.say(server.sse(*anthropic_events("fine")))
    ours = load("anthropic:claude-sonnet-5-5", api_key="k-1")
    shared: dict[str, Any] = {"max_tokens": 64}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    asked: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "response_format": form}
    assert ours.chat(CHAT, stop=("END",), **asked, **shared).text == "fine"
    theirs = anthropic.Anthropic(api_key="k-1", base_url=server.url, max_retries=0)
    their_tools: list[Any] = [
        {"name": "weather", "description": "Weather now.", "input_schema": SCHEMA}
    ]
    read: dict[str, Any] = {
        "model": "claude-sonnet-5-5",
        "system": "Be brief.",
        "messages": ANTHROPIC_MESSAGES,
        "tools": their_tools,
        "tool_choice": {"type": "any"},
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    }
    stream = theirs.messages.create(**read, **shared, stop_sequences=["END"], stream=True)
    assert next(e.type for e in stream) == "message_start"
    assert same(server).path == "/v1/messages"
    for key, value in {"authorization": "Bearer k-1", "anthropic-version": "2026-10-21"}.items():
        assert {r.headers[key] for r in server.requests} == {value}

    # Sampling lives on in the older version only; the client's own types have dropped it.
    server.say(server.sse(*anthropic_events("cold")))
    assert ours.chat(CHAT, temperature=0, top_k=5, **asked, **shared).text == "cold"
    older = {"anthropic-version": "2023-06-01"}
    sampled = {"temperature": 0, "top_k": 5}
    stream = theirs.messages.create(
        **read, **shared, stream=True, extra_headers=older, extra_body=sampled
    )
    assert [e.type for e in stream][-1] == "message_stop"
    assert same(server).body["temperature"] == 0
    assert {r.headers["anthropic-version"] for r in server.requests} == {"2023-06-01"}

    server.say(server.json({"input_tokens": 321}))
    assert ours.count_tokens(CHAT, **asked) == 321
    assert theirs.messages.count_tokens(**read).input_tokens == 321
    assert same(server).path == "/v1/messages/count_tokens"


GEMINI_CONTENTS: list[Any] = [
    {
        "role": "user",
        "parts": [
            {"text": "What is this, and the weather there? 系譜"},
            {"inline_data": {"mime_type": "image/png", "data": PNG}},
        ],
    },
    {
        "role": "model",
        "parts": [
            {"text": "Let me look."},
            {"function_call": {"name": "weather", "args": {"city": "Kyoto"}}},
        ],
    },
    {
        "role": "user",
        "parts": [
            {"function_response": {"name": "weather", "response": {"sky": "clear"}}},
            {"text": "And tomorrow?"},
        ],
    },
]


def gemini_chunk(text: str) -> dict[str, Any]:
    part = {"content": {"parts": [{"text": text}], "role": "model"}, "finishReason": "STOP"}
    return {"candidates": [{**part, "index": 0}]}


def test_gemini_generate(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from google import genai
    from google.genai import types

    monkeypatch.setattr(GeminiLM, "vendor_url", server.url)
    server.say(server.sse(gemini_chunk("fine")))
    ours = load("gemini:gemini-3.5-flash", api_key="k-2")
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    named = {"type": "function", "function": {"name": "weather"}}
    out = ours.chat(
        CHAT,
        max_tokens=64,
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        seed=7,
        stop=("END",),
        presence_penalty=0.5,
        frequency_penalty=0.25,
        n=1,
        logprobs=2,
        tools=TOOLS,
        tool_choice=named,
        response_format=form,
    )
    assert out.text == "fine"
    http = types.HttpOptions(base_url=server.url)
    theirs = genai.Client(api_key="k-2", http_options=http)
    declared = types.FunctionDeclaration(
        name="weather", description="Weather now.", parameters_json_schema=SCHEMA
    )
    calling = types.FunctionCallingConfig(
        mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=["weather"]
    )
    config = types.GenerateContentConfig(
        system_instruction="Be brief.",
        max_output_tokens=64,
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        seed=7,
        stop_sequences=["END"],
        presence_penalty=0.5,
        frequency_penalty=0.25,
        candidate_count=1,
        response_logprobs=True,
        logprobs=2,
        tools=[types.Tool(function_declarations=[declared])],
        tool_config=types.ToolConfig(function_calling_config=calling),
        response_mime_type="application/json",
        response_json_schema=SCHEMA,
    )
    chunks = theirs.models.generate_content_stream(
        model="gemini-3.5-flash", contents=GEMINI_CONTENTS, config=config
    )
    assert [c.text for c in chunks] == ["fine"]
    assert same(server).path == ("/v1/models/gemini-3.5-flash:streamGenerateContent?alt=sse")
    assert {r.headers["x-goog-api-key"] for r in server.requests} == {"k-2"}


def test_gemini_count_and_embed(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from google import genai
    from google.genai import types

    monkeypatch.setattr(GeminiLM, "vendor_url", server.url)
    theirs = genai.Client(api_key="k", http_options=types.HttpOptions(base_url=server.url))
    ours = load("gemini:gemini-embedding-001", api_key="k")
    server.say(server.json({"totalTokens": 12}))
    assert ours.count_tokens([{"role": "user", "content": "hi"}]) == 12
    counted = theirs.models.count_tokens(model="gemini-embedding-001", contents="hi")
    assert counted.total_tokens == 12
    same(server)

    server.say(server.json({"embeddings": [{"values": [1.0, 2.0]}, {"values": [3.0, 4.0]}]}))
    vectors = ours.embed(["a", "b"])
    made = theirs.models.embed_content(model="gemini-embedding-001", contents=["a", "b"])
    assert vectors == [e.values for e in made.embeddings or []] == [[1.0, 2.0], [3.0, 4.0]]
    theirs_body, ours_body = server.bodies[1], server.bodies[0]
    # A batch's client marks each lone text as a user's; the API ignores the role there.
    for request in theirs_body["requests"]:
        assert request["content"].pop("role", "user") == "user"
    assert ours_body == theirs_body
    assert server.requests[0].path == server.requests[1].path


def test_a_bad_key_is_the_same_fault_for_both(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openai

    from keifu.lm.errors import AuthenticationError

    monkeypatch.setattr(OpenAILM, "vendor_url", f"{server.url}/v1")
    error = {"message": "Incorrect API key: sk-very-secret", "code": "invalid_api_key"}
    server.say(server.json({"error": error}, 401))
    with pytest.raises(AuthenticationError, match="Incorrect API key: ") as caught:
        load("openai:gpt-4o", api_key="sk-very-secret").chat([{"role": "user", "content": "x"}])
    assert "sk-very-secret" not in str(caught.value)
    assert len(server.requests) == 1
    client = openai.OpenAI(api_key="sk-very-secret", base_url=f"{server.url}/v1")
    with contextlib.suppress(openai.AuthenticationError):
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x"}])
        pytest.fail("the client raised nothing")
    assert json.dumps(server.bodies[0]["messages"]) == json.dumps(server.bodies[1]["messages"])
