"""The unmodified anthropic client: messages, streams, tools, counts, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator

import anthropic
import pytest

from tests.server.harness import FakeLM, Running, running

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
TOOLS = [
    {
        "name": "weather",
        "description": "The weather",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def house() -> Iterator[Running]:
    replies = {"fake": "Hello, 世界!", "tools": "Hm." + CALL, "breaks": "abcdef"}

    def make(source: str) -> FakeLM:
        lm = FakeLM(source, reply=replies[source], context=400)
        lm.breaks_at = 3 if source == "breaks" else None
        return lm

    with running(make, sources=list(replies)) as house:
        yield house


@pytest.fixture
def client(house: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=house.url, api_key="x", max_retries=0) as client:
        yield client


def test_message(house: Running, client: anthropic.Anthropic) -> None:
    answer = client.messages.create(
        model="fake",
        max_tokens=100,
        messages=USER,
        system="Be brief.",
        extra_body={"top_k": 3, "temperature": 0.5},
    )
    assert answer.content[0].text == "Hello, 世界!"
    assert answer.stop_reason == "end_turn"
    assert answer.usage.input_tokens == len("system: Be brief.\nuser: hi\nassistant: ") + 1
    assert answer.usage.output_tokens == len("Hello, 世界!".encode())
    seen = house.lm().seen[-1]
    assert seen["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (seen["top_k"], seen["temperature"], seen["max_tokens"]) == (3, 0.5, 100)


def test_why_it_stopped(client: anthropic.Anthropic) -> None:
    short = client.messages.create(model="fake", max_tokens=3, messages=USER)
    assert (short.content[0].text, short.stop_reason) == ("Hel", "max_tokens")
    comma = client.messages.create(
        model="fake", max_tokens=100, messages=USER, stop_sequences=[","]
    )
    assert (comma.content[0].text, comma.stop_reason) == ("Hello", "stop_sequence")
    assert comma.stop_sequence == ","


def test_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="fake", max_tokens=100, messages=USER) as stream:
        assert "".join(stream.text_stream) == "Hello, 世界!"
        final = stream.get_final_message()
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == len("Hello, 世界!".encode())
    assert final.usage.input_tokens == len("user: hi\nassistant: ") + 1


def test_events_in_order(house: Running) -> None:
    body = {"model": "tools", "max_tokens": 200, "messages": USER, "tools": TOOLS, "stream": True}
    text = house.http.post("/v1/messages", json=body).text
    events = [block.split("\n") for block in text.strip().split("\n\n")]
    kinds = [event[0].removeprefix("event: ") for event in events]
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    bodies = [json.loads(event[1].removeprefix("data: ")) for event in events]
    assert [b["type"] for b in bodies] == kinds
    assert bodies[0]["message"]["content"] == []
    assert [b["index"] for b in bodies[1:9]] == [0] * 5 + [1] * 3


def test_tools_there_and_back(house: Running, client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model="tools", max_tokens=200, messages=USER, tools=TOOLS, tool_choice={"type": "any"}
    ) as stream:
        answer = stream.get_final_message()
    assert answer.stop_reason == "tool_use"
    text, call = answer.content
    assert (text.text, call.name, call.input) == ("Hm.", "weather", {"city": "Oslo"})
    assert house.lm("tools").seen[-1]["tool_choice"] == "required"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain", "is_error": False}
    messages = [
        *USER,
        {"role": "assistant", "content": [text.to_dict(), call.to_dict()]},
        {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
    ]
    whole = client.messages.create(model="tools", max_tokens=200, messages=messages, tools=TOOLS)
    assert whole.content[1].input == {"city": "Oslo"}
    told = house.lm("tools").seen[-1]["messages"]
    assert [m["role"] for m in told] == ["user", "assistant", "tool", "user"]
    assert told[1]["tool_calls"][0]["id"] == call.id == told[2]["tool_call_id"]
    assert json.loads(told[1]["tool_calls"][0]["function"]["arguments"]) == {"city": "Oslo"}


def test_prefill_continues_the_last_message(house: Running, client: anthropic.Anthropic) -> None:
    messages = [*USER, {"role": "assistant", "content": "He"}]
    client.messages.create(model="fake", max_tokens=5, messages=messages)
    assert house.lm().seen[-1]["continue_final"] is True


def test_count_tokens(client: anthropic.Anthropic) -> None:
    count = client.messages.count_tokens(model="fake", messages=USER)
    assert count.input_tokens == len("user: hi\nassistant: ") + 1


def test_typed_errors(client: anthropic.Anthropic, house: Running) -> None:
    def ask(**fields: object) -> object:
        given = {"model": "fake", "max_tokens": 5, "messages": USER, **fields}
        return client.messages.create(**given)

    with pytest.raises(anthropic.NotFoundError) as missing:
        ask(model="fke")
    assert missing.value.body["error"]["type"] == "not_found_error"
    for wrong in [
        {"extra_body": {"temperature": 1.5}},
        {"messages": []},
        {"messages": [{"role": "user", "content": "x" * 500}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "other"}},
    ]:
        with pytest.raises(anthropic.BadRequestError) as bad:
            ask(**wrong)
        assert bad.value.body["type"] == "error"
        assert bad.value.body["error"]["type"] == "invalid_request_error"
    body = {"model": "breaks", "max_tokens": 9, "messages": USER, "stream": True}
    text = house.http.post("/v1/messages", json=body).text
    assert text.split("\n\n")[-2].startswith("event: error\n")
    assert "secret" not in text
    house.gate.draining = True
    with pytest.raises(anthropic.APIStatusError) as busy:
        ask()
    house.gate.draining = False
    assert busy.value.status_code == 529
