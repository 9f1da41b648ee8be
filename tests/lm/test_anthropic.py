"""Anthropic's protocol: conversion, events, n outputs, what it cannot do."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from keifu.core.errors import KeifuError
from keifu.inference.request import ParameterError, ToolCall, Usage
from keifu.lm.anthropic import AnthropicLM, to_anthropic
from keifu.lm.errors import RemoteError
from keifu.lm.remote import RemoteOptions
from tests.lm.fake_server import FakeServer

ASK = [{"role": "user", "content": "hi"}]


def model(server: FakeServer, **options: Any) -> AnthropicLM:
    return AnthropicLM("c", RemoteOptions(base_url=server.url, **options))


def event(kind: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return kind, {"type": kind, **fields}


def start(**usage: int) -> tuple[str, dict[str, Any]]:
    return event("message_start", message={"id": "m", "content": [], "usage": usage})


def block(index: int, **fields: Any) -> tuple[str, dict[str, Any]]:
    return event("content_block_start", index=index, content_block=fields)


def piece(index: int, **fields: Any) -> tuple[str, dict[str, Any]]:
    return event("content_block_delta", index=index, delta=fields)


def end(reason: str, sequence: str | None = None, **usage: int) -> list[tuple[str, Any]]:
    delta = {"stop_reason": reason, "stop_sequence": sequence}
    return [event("message_delta", delta=delta, usage=usage), event("message_stop")]


def test_text_thinking_tools_usage(server: FakeServer) -> None:
    server.say(
        server.sse(
            start(input_tokens=5, cache_read_input_tokens=100, cache_creation_input_tokens=20),
            event("ping"),
            block(0, type="thinking", thinking=""),
            piece(0, type="thinking_delta", thinking="hmm"),
            piece(0, type="signature_delta", signature="s"),
            event("content_block_stop", index=0),
            block(1, type="text", text=""),
            piece(1, type="text_delta", text="系"),
            piece(1, type="text_delta", text="譜"),
            event("content_block_stop", index=1),
            block(2, type="tool_use", id="t1", name="weather", input={}),
            piece(2, type="input_json_delta", partial_json='{"city":'),
            piece(2, type="input_json_delta", partial_json=' "Kyoto"}'),
            event("content_block_stop", index=2),
            block(3, type="tool_use", id="t2", name="now", input={}),
            event("content_block_stop", index=3),
            event("an_event_of_next_year", index=9),
            *end("tool_use", output_tokens=17),
        )
    )
    pieces = list(model(server).chat_stream(ASK))
    assert [p.text for p in pieces if p.text] == ["系", "譜"]
    calls = [c for p in pieces for c in p.tool_calls]
    assert calls == [ToolCall("t1", "weather", '{"city": "Kyoto"}'), ToolCall("t2", "now", "{}")]
    assert pieces[-1].finish == "tool_calls"
    assert pieces[-1].usage == Usage(125, 17, 100)
    sent = {"model": "c", "max_tokens": 4096, "stream": True, "messages": ASK}
    assert server.last.body == sent


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        *(("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length")),
        *(("model_context_window_exceeded", "length"), ("refusal", "error")),
    ],
)
def test_reasons(server: FakeServer, reason: str, finish: str) -> None:
    sequence = "END" if reason == "stop_sequence" else None
    server.say(server.sse(start(input_tokens=1), *end(reason, sequence, output_tokens=2)))
    choice = model(server).chat(ASK, stop=("END",)).choices[0]
    assert (choice.finish, choice.stop) == (finish, sequence)
    assert server.last.body["stop_sequences"] == ["END"]


def test_faults_in_the_stream(server: FakeServer) -> None:
    text = [start(input_tokens=1), block(0, type="text", text="a")]
    error = {"type": "overloaded_error", "message": "Overloaded"}
    for broken, message in (
        ([event("error", error=error)], "Overloaded"),
        ([], "broke off"),
        ([("content_block_delta", {"type": "content_block_delta"})], "malformed event"),
        (["[]"], "malformed event"),
    ):
        server.say(server.sse(*text, *broken))
        stream = iter(model(server).chat_stream(ASK))
        assert next(stream).text == "a"
        with pytest.raises(RemoteError, match=message):
            next(stream)


def test_n_outputs_are_n_requests(server: FakeServer) -> None:
    def said(text: str) -> Any:
        events = [start(input_tokens=3), block(0, type="text", text=text)]
        return server.sse(*events, *end("end_turn", output_tokens=1))

    server.say(said("a"), said("b"), said("c"))
    answer = model(server).chat(ASK, n=3)
    assert sorted(c.text for c in answer.choices) == ["a", "b", "c"]
    assert answer.usage == Usage(3, 3)
    assert len(server.requests) == 3
    assert "n" not in server.last.body
    server.say(said("a"), server.json({"error": {"message": "bad"}}, 400))
    with pytest.raises(RemoteError, match="bad"):
        model(server).chat(ASK, n=3)


def test_cancelling_leaves_finished_outputs_finished(server: FakeServer) -> None:
    release = threading.Event()
    events = [start(input_tokens=3), block(0, type="text", text="a")]
    whole = server.sse(*events, *end("end_turn", output_tokens=1))
    server.say(whole, lambda handler: release.wait(5) and None)
    stream = model(server).chat_stream(ASK, n=2)
    deltas = []
    for delta in stream:
        deltas.append(delta)
        if delta.finish == "stop":
            stream.cancel()
    release.set()
    assert [d.finish for d in deltas] == [None, "stop", "cancelled"]
    assert deltas[1].index != deltas[2].index


def test_conversation() -> None:
    def call(name: str) -> dict[str, Any]:
        return {"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}}

    def use(name: str) -> dict[str, Any]:
        return {"type": "tool_use", "id": name, "name": name, "input": {}}

    def result(name: str, text: str) -> dict[str, Any]:
        return {"type": "tool_result", "tool_use_id": name, "content": text}

    image = {"type": "image_url", "image_url": {"url": "https://host/cat.png"}}
    pdf = {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}}
    system, turns = to_anthropic(
        [
            {"role": "system", "content": "One."},
            {"role": "developer", "content": [{"type": "text", "text": "Two."}]},
            {"role": "user", "content": "a"},
            {"role": "user", "content": [image, pdf]},
            {"role": "assistant", "content": None, "tool_calls": [call("f"), call("g")]},
            {"role": "tool", "tool_call_id": "f", "content": "1"},
            {"role": "tool", "tool_call_id": "g", "content": "2"},
            {"role": "assistant", "content": "done"},
        ]
    )
    assert system == "One.\n\nTwo."
    source = {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}
    assert turns == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image", "source": {"type": "url", "url": "https://host/cat.png"}},
                {"type": "document", "source": source},
            ],
        },
        {"role": "assistant", "content": [use("f"), use("g")]},
        {"role": "user", "content": [result("f", "1"), result("g", "2")]},
        {"role": "assistant", "content": "done"},
    ]


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([*ASK, {"role": "system", "content": "x"}], {}, "system messages only at the start"),
        ([*ASK, {"role": "assistant", "content": "x"}], {}, "continue_final=False does not fit"),
        (ASK, {"continue_final": True}, "continue_final=True does not fit"),
        (ASK, {"seed": 1}, "seed=1 is not allowed: anthropic has no such setting"),
        (ASK, {"logprobs": 0}, "logprobs=0"),
        (ASK, {"temperature": 1.5}, "anthropic goes to 1"),
        (ASK, {"min_p": 0.1}, "min_p"),
        (ASK, {"response_format": {"type": "json_object"}}, "only by schema"),
        (ASK, {"tools": [{"type": "function"}]}, "lacks the field 'function'"),
        (
            ASK,
            {"tools": [{"function": {"name": "f"}}], "tool_choice": "maybe"},
            "tool_choice='maybe'",
        ),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], {}, "no message part of type"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "file:///etc/x"}]}],
            {},
            "no image address",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "data:x,y"}]}],
            {},
            "data URL must read",
        ),
        (
            [
                {"role": "user", "content": "x"},
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}],
                },
            ],
            {"continue_final": True},
            "f's arguments are malformed JSON",
        ),
    ],
)
def test_what_cannot_be_said_is_refused_before_sending(
    server: FakeServer, messages: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(KeifuError, match=message):
        model(server).chat_stream(messages, **options)
    assert server.requests == []


def test_missing_verbs_are_one_line_errors(server: FakeServer) -> None:
    lm = model(server)
    for verb in (
        lambda: lm.complete("x"),
        lambda: lm.score("a", "b"),
        lambda: lm.embed(["a"]),
    ):
        with pytest.raises(KeifuError, match=r"^c: anthropic cannot .*; use "):
            verb()
    with pytest.raises(ParameterError):
        lm.chat(ASK, template_options={"a": 1})


def test_context_is_checked_by_a_count_only_when_it_must_be(server: FakeServer) -> None:
    lm = model(server, ctx=300)
    answer = server.sse(start(input_tokens=1), *end("end_turn", output_tokens=1))
    server.say(answer)
    lm.chat(ASK, max_tokens=100)
    assert [r.path for r in server.requests] == ["/v1/messages"]
    long = [{"role": "user", "content": "word " * 60}]
    server.say(server.json({"input_tokens": 200}), answer)
    lm.chat(long, max_tokens=100)
    assert [r.path for r in server.requests] == ["/v1/messages/count_tokens", "/v1/messages"]
    server.say(server.json({"input_tokens": 201}))
    with pytest.raises(KeifuError, match="the prompt has 201 tokens plus 100 requested"):
        lm.chat(long, max_tokens=100)
    assert [r.path for r in server.requests] == ["/v1/messages/count_tokens"]
