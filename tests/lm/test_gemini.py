"""Gemini's protocol: conversion, chunks, what it cannot do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from keifu.core.errors import KeifuError
from keifu.inference.request import ParameterError, TokenLogprob, Usage
from keifu.lm.errors import RateLimited, RemoteError
from keifu.lm.gemini import GeminiLM, to_gemini
from keifu.lm.remote import RemoteOptions
from tests.lm.fake_server import FakeServer

ASK = [{"role": "user", "content": "hi"}]
PATH = "/v1/models/g:streamGenerateContent?alt=sse"


def model(server: FakeServer, name: str = "g", **options: Any) -> GeminiLM:
    return GeminiLM(name, RemoteOptions(base_url=server.url, **options))


def chunk(
    *parts: dict[str, Any], finish: str | None = None, index: int = 0, **extra: Any
) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": list(parts)}, "index": index}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate | extra.pop("candidate", {})], **extra}


def test_text_thoughts_tools_usage(server: FakeServer) -> None:
    usage = {
        "promptTokenCount": 7,
        "candidatesTokenCount": 3,
        "thoughtsTokenCount": 40,
        "cachedContentTokenCount": 2,
    }
    call = {"functionCall": {"name": "weather", "args": {"city": "京都"}}}
    named = {"functionCall": {"name": "now", "id": "given"}}
    server.say(
        server.sse(
            chunk({"text": "planning", "thought": True}),
            chunk({"text": "系"}, usageMetadata={"promptTokenCount": 7}),
            chunk({"text": "譜"}, call, named),
            chunk(finish="STOP", usageMetadata=usage),
        )
    )
    pieces = list(model(server).chat_stream(ASK))
    assert [p.text for p in pieces if p.text] == ["系", "譜"]
    first, second = [c for p in pieces for c in p.tool_calls]
    assert (first.name, json.loads(first.arguments)) == ("weather", {"city": "京都"})
    assert first.id.startswith("call_")
    assert (second.id, second.name, second.arguments) == ("given", "now", "{}")
    assert pieces[-1].finish == "tool_calls"
    assert pieces[-1].usage == Usage(7, 43, 2)
    assert server.last.path == PATH
    assert server.last.body == {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}


def test_candidates_and_logprobs(server: FakeServer) -> None:
    chosen = {"token": "A", "tokenId": 5, "logProbability": -0.25}
    other = {"token": "B", "tokenId": 6, "logProbability": -1.5}
    result = {"chosenCandidates": [chosen], "topCandidates": [{"candidates": [chosen, other]}]}
    server.say(
        server.sse(
            chunk({"text": "A"}, finish="STOP", candidate={"logprobsResult": result}),
            chunk({"text": "b"}, finish="MAX_TOKENS", index=1),
        )
    )
    answer = model(server).chat(ASK, n=2, logprobs=2)
    assert [(c.text, c.finish) for c in answer.choices] == [("A", "stop"), ("b", "length")]
    a, b = TokenLogprob(5, "A", -0.25, (), b"A"), TokenLogprob(6, "B", -1.5, (), b"B")
    assert answer.choices[0].logprobs == (TokenLogprob(5, "A", -0.25, (a, b), b"A"),)
    settings = {"candidateCount": 2, "logprobs": 2, "responseLogprobs": True}
    assert server.last.body["generationConfig"] == settings


def test_faults(server: FakeServer) -> None:
    for broken, message in (
        ([{"error": {"code": 500, "message": "Internal", "status": "INTERNAL"}}], "Internal"),
        ([], "broke off"),
        ([{"candidates": [{"content": 3}]}], "malformed chunk"),
        (["3"], "malformed chunk"),
        ([{"promptFeedback": {"blockReason": "SAFETY"}}], "refused the prompt: SAFETY"),
    ):
        server.say(server.sse(chunk({"text": "a"}), *broken))
        stream = iter(model(server).chat_stream(ASK))
        assert next(stream).text == "a"
        with pytest.raises(RemoteError, match=message):
            next(stream)
    listed = [{"error": {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED"}}]
    server.say(server.json(listed, 429))
    with pytest.raises(RateLimited, match="quota") as caught:
        model(server, retries=0).chat(ASK)
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    server.say(server.sse(chunk({"text": "x"}, finish="SAFETY")))
    assert model(server).chat(ASK).finish == "error"


def test_conversation() -> None:
    def call(name: str, number: str) -> dict[str, Any]:
        return {"id": number, "function": {"name": name, "arguments": '{"a": 1}'}}

    audio = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    clip = {"type": "image_url", "image_url": {"url": "https://host/a/cat.png?x=1"}}
    film = {"type": "file", "file": {"file_data": "data:video/mp4;base64,BBBB"}}
    system, contents = to_gemini(
        [
            {"role": "system", "content": "One."},
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}, audio, clip, film]},
            {"role": "assistant", "content": "", "tool_calls": [call("f", "1"), call("g", "2")]},
            {"role": "tool", "tool_call_id": "2", "content": "plain text"},
            {"role": "tool", "tool_call_id": "1", "content": '{"ok": true}'},
        ]
    )
    assert system == "One."

    def made(name: str) -> dict[str, Any]:
        return {"functionCall": {"name": name, "args": {"a": 1}}}

    def answered(name: str, response: Any) -> dict[str, Any]:
        return {"functionResponse": {"name": name, "response": response}}

    assert contents == [
        {
            "role": "user",
            "parts": [
                {"text": "a"},
                {"text": "b"},
                {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}},
                {"fileData": {"mimeType": "image/png", "fileUri": "https://host/a/cat.png?x=1"}},
                {"inlineData": {"mimeType": "video/mp4", "data": "BBBB"}},
            ],
        },
        {"role": "model", "parts": [made("f"), made("g")]},
        {
            "role": "user",
            "parts": [answered("g", {"result": "plain text"}), answered("f", {"ok": True})],
        },
    ]


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([*ASK, {"role": "system", "content": "x"}], {}, "system messages only at the start"),
        ([{"role": "tool", "tool_call_id": "9", "content": ""}], {}, "'9', which nobody made"),
        ([{"role": "user", "content": [{"type": "smell"}]}], {}, "no message part of type 'smell'"),
        (ASK, {"logit_bias": {1: 2.0}}, "gemini has no such setting"),
        (ASK, {"continue_final": True}, "continue_final"),
        (ASK, {"tools": [{"function": {"name": "f"}}], "tool_choice": "maybe"}, "'maybe'"),
    ],
)
def test_what_cannot_be_said_is_refused_before_sending(
    server: FakeServer, messages: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(KeifuError, match=message):
        model(server).chat_stream(messages, **options)
    assert server.requests == []


def test_tools_formats_and_modes(server: FakeServer) -> None:
    server.say(server.sse(chunk({"text": "{}"}, finish="STOP")))
    lm = model(server)
    tool = {"type": "function", "function": {"name": "f"}}
    json_only = {"type": "json_object"}
    lm.chat(ASK, tools=[tool], tool_choice="none", response_format=json_only, max_tokens=5)
    body = server.last.body
    assert body["tools"] == [{"functionDeclarations": [{"name": "f"}]}]
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "NONE"}}
    settings = {"maxOutputTokens": 5, "responseMimeType": "application/json"}
    assert body["generationConfig"] == settings


def test_counting_with_a_system_message_wraps_the_request(server: FakeServer) -> None:
    server.say(server.json({"totalTokens": 21}))
    lm = model(server)
    assert lm.count_tokens([{"role": "system", "content": "s"}, *ASK]) == 21
    assert server.last.path == "/v1/models/g:countTokens"
    wrapped = server.last.body["generateContentRequest"]
    assert wrapped["model"] == "models/g"
    assert wrapped["systemInstruction"]["parts"] == [{"text": "s"}]
    assert lm.count_tokens("text") == 21
    server.say(server.json({}))
    with pytest.raises(RemoteError, match="token count is malformed"):
        lm.count_tokens("text")


def test_a_models_name_cannot_leave_its_path(server: FakeServer) -> None:
    server.say(server.sse(chunk({"text": "x"}, finish="STOP")))
    model(server, "../../admin?x=1#").chat(ASK)
    expected = "/v1/models/..%2F..%2Fadmin%3Fx%3D1%23:streamGenerateContent?alt=sse"
    assert server.last.path == expected


def test_missing_verbs_are_one_line_errors(server: FakeServer) -> None:
    lm = model(server)
    for verb in (
        lambda: lm.complete("x"),
        lambda: lm.score("a", "b"),
        lambda: lm.embed([[1, 2]]),
    ):
        with pytest.raises(KeifuError, match=r"^g: gemini cannot .*; "):
            verb()
    with pytest.raises(ParameterError):
        lm.chat(ASK, template_options={"a": 1})
