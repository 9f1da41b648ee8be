"""The unmodified openai client chats, streams, calls tools and gets typed errors."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import openai
import pytest

from tests.server.harness import FIRST, FakeLM, Running, bigram_logprobs, running

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather somewhere",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "京都"}}\n</tool_call>'
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def house() -> Iterator[Running]:
    replies = {
        "fake": "Hello, 世界 🌏!",
        "tools": "Let me look." + CALL,
        "two": CALL + CALL,
        "breaks": "abcdefgh",
    }

    def make(source: str) -> FakeLM:
        lm = FakeLM(source, reply=replies[source], context=300)
        lm.breaks_at = 3 if source == "breaks" else None
        return lm

    with running(make, sources=list(replies)) as house:
        yield house


@pytest.fixture
def client(house: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key="x", max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=USER, seed=1)
    (choice,) = answer.choices
    assert choice.message.content == "Hello, 世界 🌏!"
    assert choice.finish_reason == "stop"
    assert choice.message.tool_calls is None
    prompt = len("user: hi\nassistant: ") + 1
    assert answer.usage.prompt_tokens == prompt
    assert answer.usage.completion_tokens == len("Hello, 世界 🌏!".encode())
    assert answer.usage.total_tokens == prompt + answer.usage.completion_tokens
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer._request_id.startswith("req_")


def test_stream_joins_to_the_whole_and_never_splits_a_character(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="fake", messages=USER, stream=True, stream_options={"include_usage": True}
        )
    )
    assert len({(c.id, c.created) for c in chunks}) == 1
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    first, *_, last, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    assert first.choices[0].delta.content == ""
    texts = [c.choices[0].delta.content or "" for c in chunks[:-1]]
    assert "".join(texts) == "Hello, 世界 🌏!"
    assert "\ufffd" not in "".join(texts)
    assert last.choices[0].finish_reason == "stop"
    assert last.choices[0].delta.content is None
    assert usage.choices == []
    assert usage.usage.completion_tokens == len("Hello, 世界 🌏!".encode())
    assert all(c.usage is None for c in chunks[:-1])


def test_stream_on_the_wire(house: Running) -> None:
    body = {"model": "fake", "messages": USER, "stream": True, "max_tokens": 2}
    answer = house.http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    *events, done, empty = answer.text.split("\n\n")
    assert (done, empty) == ("data: [DONE]", "")
    parsed = [json.loads(e.removeprefix("data: ")) for e in events]
    assert [p["choices"][0]["finish_reason"] for p in parsed] == [None, None, None, "length"]
    assert "usage" not in parsed[0]


def test_n_outputs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=USER, n=3, max_tokens=5)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert {c.message.content for c in answer.choices} == {"Hello"}
    assert answer.usage.completion_tokens == 15
    stream = client.chat.completions.create(
        model="fake", messages=USER, n=2, max_tokens=5, stream=True
    )
    texts = {0: "", 1: ""}
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "Hello", 1: "Hello"}


def test_logprobs_are_the_models_own(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="fake", messages=USER, max_tokens=2, logprobs=True, top_logprobs=3
    )
    first, second = answer.choices[0].logprobs.content
    table = bigram_logprobs()
    assert first.token == "H"
    assert first.bytes == [72]
    assert first.logprob == table[ord(" ") + FIRST, ord("H") + FIRST]
    assert second.logprob == table[ord("H") + FIRST, ord("e") + FIRST]
    best = sorted(table[ord(" ") + FIRST], reverse=True)[:3]
    assert [t.logprob for t in first.top_logprobs] == best


def test_tool_call(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tools", messages=USER, tools=TOOLS, tool_choice="auto"
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    (call,) = choice.message.tool_calls
    assert call.id.startswith("call_")
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "京都"}


def test_tool_results_go_back_to_the_model(house: Running, client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    client.chat.completions.create(model="tools", messages=messages, tools=TOOLS)
    assert house.lm("tools").seen[-1]["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
    ]


def test_streamed_tool_calls(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="two", messages=USER, tools=TOOLS, stream=True)
    calls: dict[int, dict[str, str]] = {}
    finish = None
    for chunk in stream:
        (choice,) = chunk.choices
        finish = choice.finish_reason or finish
        for piece in choice.delta.tool_calls or []:
            call = calls.setdefault(piece.index, {"id": "", "name": "", "arguments": ""})
            call["id"] += piece.id or ""
            call["name"] += piece.function.name or ""
            call["arguments"] += piece.function.arguments or ""
    assert finish == "tool_calls"
    assert sorted(calls) == [0, 1]
    assert all(json.loads(c["arguments"]) == {"city": "京都"} for c in calls.values())
    assert calls[0]["id"] != calls[1]["id"]


def test_one_call_at_a_time_when_asked(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="two", messages=USER, tools=TOOLS, parallel_tool_calls=False
    )
    assert len(answer.choices[0].message.tool_calls) == 1


def test_old_functions(house: Running) -> None:
    body = {"model": "tools", "messages": USER, "functions": [TOOLS[0]["function"]]}
    (choice,) = house.http.post("/v1/chat/completions", json=body).json()["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"]["name"] == "weather"


def test_tool_choice_reaches_the_model(house: Running, client: openai.OpenAI) -> None:
    one = {"type": "function", "function": {"name": "weather"}}
    for given, wanted in [("required", "required"), ("none", "none"), (one, one)]:
        client.chat.completions.create(model="tools", messages=USER, tools=TOOLS, tool_choice=given)
        assert house.lm("tools").seen[-1]["tool_choice"] == wanted
    allowed = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [one]},
    }
    client.chat.completions.create(model="tools", messages=USER, tools=TOOLS, tool_choice=allowed)
    assert house.lm("tools").seen[-1]["tool_choice"] == "required"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="tools",
            messages=USER,
            tools=TOOLS,
            tool_choice={"type": "function", "function": {"name": "weathr"}},
        )
    assert caught.value.param == "tool_choice"


def test_extra_fields_are_honoured(house: Running, client: openai.OpenAI) -> None:
    extra = {
        "top_k": 5,
        "min_p": 0.1,
        "typical_p": 0.9,
        "repetition_penalty": 1.1,
        "min_tokens": 1,
        "ignore_eos": False,
        "stop_token_ids": [9],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "add_generation_prompt": False,
        "continue_final_message": True,
        "chat_template_kwargs": {"thinking": False},
    }
    client.chat.completions.create(
        model="fake",
        messages=USER,
        max_completion_tokens=3,
        stop=["x"],
        logit_bias={"70": 5},
        extra_body=extra,
    )
    seen = dict(house.lm("fake").seen[-1])
    del seen["messages"]
    assert seen == {
        "max_tokens": 3,
        "top_k": 5,
        "min_p": 0.1,
        "typical_p": 0.9,
        "repetition_penalty": 1.1,
        "min_tokens": 1,
        "ignore_eos": False,
        "stop": ("x",),
        "stop_ids": (9,),
        "include_stop": True,
        "show_special": True,
        "logit_bias": {70: 5.0},
        "template_options": {"thinking": False, "add_generation_prompt": False},
        "continue_final": True,
    }


def test_fields_without_effect_are_named(client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(
        model="fake", messages=USER, user="me", extra_body={"mirostat": 2, "froz\nen": 1}
    )
    assert answer.headers["x-ignored-params"] == r"user, mirostat, 'froz\nen'"


def test_strict_refuses_unknown_fields() -> None:
    with running(strict=True) as house:
        assert house.chat(user="me").status_code == 200
        answer = house.chat(tempurature=1)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "tempurature"


def test_typed_errors(client: openai.OpenAI) -> None:
    def ask(**fields: object) -> object:
        return client.chat.completions.create(**{"model": "fake", "messages": USER, **fields})

    with pytest.raises(openai.NotFoundError) as missing:
        ask(model="fke")
    assert missing.value.code == "model_not_found"
    assert "fake" in missing.value.message
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(temperature=-1)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        ask(messages=[{"role": "user", "content": "x" * 400}])
    assert long.value.code == "context_length_exceeded"
    assert "419" in long.value.message
    assert "300" in long.value.message
    picture = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
    with pytest.raises(openai.BadRequestError) as image:
        ask(messages=[{"role": "user", "content": [picture]}])
    assert image.value.code == "unsupported_content"
    with pytest.raises(openai.BadRequestError):
        ask(response_format={"type": "json_object"})
    with pytest.raises(openai.BadRequestError) as guided:
        ask(extra_body={"structured_outputs": {"structural_tag": "x"}})
    assert guided.value.param == "structured_outputs"
    with pytest.raises(openai.BadRequestError) as both:
        ask(extra_body={"guided_regex": "a+", "grammar": "root ::= x"})
    assert both.value.param == "grammar"
    with pytest.raises(openai.BadRequestError) as other:
        ask(extra_body={"lora": [{"id": 1}]})
    assert other.value.code == "unsupported_parameter"


def test_a_bug_is_a_500_without_its_secrets(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="breaks", messages=USER)
    assert "secret" not in str(caught.value)
    assert caught.value.response.headers["x-request-id"] in caught.value.message


def test_an_error_in_mid_stream_is_raised_by_the_client(
    house: Running, client: openai.OpenAI
) -> None:
    stream = client.chat.completions.create(model="breaks", messages=USER, stream=True)
    texts = [next(stream).choices[0].delta.content for _ in range(4)]
    assert texts == ["", "a", "b", "c"]
    with pytest.raises(openai.APIError):
        next(stream)
    body = {"model": "breaks", "messages": USER, "stream": True}
    raw = house.http.post("/v1/chat/completions", json=body).text
    assert raw.rstrip().endswith("}}")
    assert "[DONE]" not in raw


def test_a_silent_stream_is_kept_alive() -> None:
    def make(source: str) -> FakeLM:
        lm = FakeLM(source, reply="late", prefill=0.5)
        lm.breaks_at = 2 if source == "breaks" else None
        return lm

    with running(make, sources=["fake", "breaks"], ping_seconds=0.1) as house:
        raw = house.chat(stream=True).text
        assert raw.startswith(": ping\n\n: ping\n\n")
        with openai.OpenAI(base_url=f"{house.url}/v1", api_key="x") as client:
            chunks = client.chat.completions.create(model="fake", messages=USER, stream=True)
            assert "".join(c.choices[0].delta.content or "" for c in chunks) == "late"
        body = {"model": "fake", "max_tokens": 9, "messages": USER, "stream": True}
        told = house.http.post("/v1/messages", json=body).text
        assert told.startswith('event: ping\ndata: {"type": "ping"}\n\n')
        broken = house.chat(model="breaks", stream=True)  # fails after the first ping: a 200
        assert broken.status_code == 200
        assert '"error"' in broken.text
        assert "[DONE]" not in broken.text


def test_an_answer_does_not_wait_for_acknowledgements(house: Running) -> None:
    times = []
    for _ in range(12):
        began = time.monotonic()
        assert house.chat(max_tokens=1).status_code == 200
        times.append(time.monotonic() - began)
    assert min(times) < 0.03  # Nagle's algorithm made every one of them 40 ms longer


def test_request_id_is_echoed(house: Running) -> None:
    answer = house.http.get("/v1/models", headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    answer = house.http.get("/v1/models", headers={"x-request-id": "bad id;"})
    assert answer.headers["x-request-id"].startswith("req_")
