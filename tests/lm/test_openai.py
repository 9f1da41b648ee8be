"""OpenAI's protocol: what is sent, how the stream is read, scores, embeddings, counts."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import pytest

from keifu.core.errors import KeifuError
from keifu.inference.request import ParameterError, TokenLogprob, ToolCall, Usage
from keifu.lm import load
from keifu.lm.errors import RemoteError, UncountableError
from keifu.lm.openai import OpenAILM
from keifu.lm.remote import RemoteOptions
from tests.lm.fake_server import FakeServer

ASK = [{"role": "user", "content": "hi"}]
USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 8},
}


def model(server: FakeServer, **options: Any) -> OpenAILM:
    return OpenAILM("m", RemoteOptions(base_url=f"{server.url}/v1", **options))


def delta(finish: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": fields, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "choices": [choice], "usage": None}


def test_text_usage_and_times(server: FakeServer) -> None:
    server.say(
        server.sse(
            delta(role="assistant", content=""),
            delta(content="系"),
            delta(content="譜"),
            delta(finish="length"),
            {"choices": [], "usage": USAGE},
            done=True,
        )
    )
    pieces = list(model(server).chat_stream(ASK))
    assert [p.text for p in pieces] == ["系", "譜", ""]
    assert pieces[-1].finish == "length"
    assert pieces[-1].usage == Usage(11, 5, 8)
    assert pieces[-1].timings is not None
    assert 0 < pieces[-1].timings.first_token < 5


def test_tool_calls_come_together(server: FakeServer) -> None:
    def call(index: int, **fields: Any) -> dict[str, Any]:
        return {"index": index, **fields}

    first = call(0, id="call_a", type="function", function={"name": "weather", "arguments": ""})
    second = call(1, id="call_b", type="function", function={"name": "time", "arguments": "{}"})
    server.say(
        server.sse(
            delta(tool_calls=[first]),
            delta(tool_calls=[call(0, function={"arguments": '{"city"'})]),
            delta(tool_calls=[call(0, function={"arguments": ': "Kyoto"}'}), second]),
            delta(finish="tool_calls"),
            done=True,
        )
    )
    answer = model(server).chat(ASK)
    assert answer.finish == "tool_calls"
    assert answer.tool_calls == (
        ToolCall("call_a", "weather", '{"city": "Kyoto"}'),
        ToolCall("call_b", "time", "{}"),
    )


def test_several_outputs_and_chat_logprobs(server: FakeServer) -> None:
    top = [
        {"token": "A", "logprob": -0.1, "bytes": [65]},
        {"token": "B", "logprob": -2.5, "bytes": [66]},
    ]
    entry = {**top[0], "top_logprobs": top}
    chunk = delta(index=1, content="A")
    chunk["choices"][0]["logprobs"] = {"content": [entry]}
    server.say(
        server.sse(
            delta(content="x"),
            chunk,
            delta(finish="stop"),
            delta(index=1, finish="length"),
            {"choices": [], "usage": USAGE},
            done=True,
        )
    )
    answer = model(server).chat(ASK, n=2, logprobs=2)
    assert [c.text for c in answer.choices] == ["x", "A"]
    assert [c.finish for c in answer.choices] == ["stop", "length"]
    assert answer.usage == Usage(11, 5, 8)
    a, b = (TokenLogprob(-1, t["token"], t["logprob"], (), t["token"].encode()) for t in top)
    assert answer.choices[1].logprobs == (TokenLogprob(-1, "A", -0.1, (a, b), b"A"),)
    assert server.last.body["n"] == 2
    assert server.last.body["logprobs"] is True


def test_a_completion_with_its_logprobs(server: FakeServer) -> None:
    logprobs = {
        "tokens": [" b"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{" c": -1.5, " b": -0.5}],
        "text_offset": [1],
    }
    choice = {"index": 0, "text": " b", "logprobs": logprobs, "finish_reason": "length"}
    server.say(server.sse({"choices": [choice]}, {"choices": [], "usage": USAGE}, done=True))
    answer = model(server).complete([5, 6], max_tokens=1, logprobs=2)
    assert server.last.body["prompt"] == [5, 6]
    assert server.last.body["logprobs"] == 2
    assert [t.token for t in answer.choices[0].logprobs[0].top] == [" b", " c"]
    assert answer.choices[0].logprobs[0].logprob == -0.5


def test_only_what_was_asked_is_sent_and_nothing_is_dropped(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.say(server.sse(delta(content="x"), delta(finish="stop"), done=True))
    lm = model(server)
    lm.chat(ASK)
    plain = {"model": "m", "messages": ASK, "stream": True}
    assert server.last.body == {**plain, "stream_options": {"include_usage": True}}
    extras = {"top_k": 5, "min_p": 0.1, "ignore_eos": True, "stop_ids": (2,), "min_tokens": 3}
    options = {"enable_thinking": False}
    lm.chat(ASK, max_tokens=7, continue_final=True, template_options=options, **extras)
    sent = server.last.body
    assert (sent["top_k"], sent["min_p"], sent["ignore_eos"]) == (5, 0.1, True)
    assert (sent["stop_token_ids"], sent["min_tokens"], sent["max_tokens"]) == ([2], 3, 7)
    assert sent["continue_final_message"] is True
    assert sent["add_generation_prompt"] is False
    assert sent["chat_template_kwargs"] == options
    count = len(server.requests)
    with pytest.raises(ParameterError, match="beams=4"):
        lm.chat(ASK, beams=4)
    with pytest.raises(ParameterError, match="temperature=-1"):
        lm.chat(ASK, temperature=-1)
    with pytest.raises(KeifuError, match="no option 'temprature'; nearest: temperature"):
        lm.chat(ASK, temprature=1)
    with pytest.raises(KeifuError, match="message 0 has role 'robot'"):
        lm.chat([{"role": "robot", "content": ""}])
    with pytest.raises(KeifuError, match="no message"):
        lm.chat([])
    for content, message in (
        (5, "a text or a list of parts"),
        (["text"], "a text or a list of parts"),
        ([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}], "no image address"),
        ([{"type": "image_url"}], "no image address"),
        ([{"type": "image_url", "image_url": "data:image/png;base64,A"}], "no base64"),
    ):
        with pytest.raises(KeifuError, match=message):
            lm.chat([{"role": "user", "content": content}])
    monkeypatch.setattr(OpenAILM, "vendor_url", f"{server.url}/v1")
    vendor = load("openai:gpt-4o", api_key="k")
    for bad in ({"top_k": 5}, {"min_p": 0.5}, {"continue_final": True}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            vendor.chat(ASK, **bad)
    assert len(server.requests) == count
    vendor.chat(ASK, top_k=0, max_tokens=3)  # asks for nothing
    assert server.last.body["max_completion_tokens"] == 3
    assert "top_k" not in server.last.body


def echo(tokens: list[str], offsets: list[int], values: list[float | None]) -> dict[str, Any]:
    tops = [None if v is None else {t: v} for t, v in zip(tokens, values, strict=True)]
    found = {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": tops,
        "text_offset": offsets,
    }
    return {"choices": [{"index": 0, "text": "".join(tokens), "logprobs": found}]}


@pytest.mark.parametrize(
    ("tokens", "offsets", "values"),
    [
        # Plain: the last token was generated. A begin token that is, or is not, counted as text.
        (["The", " sky", " is", " blue", "!"], [0, 3, 7, 10, 15], [None, -1.0, -2.0, -3.0, -9.0]),
        (
            ["<s>", "The", " sky", " is", " blue", "!"],
            [0, 3, 6, 10, 13, 18],
            [None, -0.5, -1.0, -2.0, -3.0, -9.0],
        ),
        (
            ["<s>", "The", " sky", " is", " blue", "!"],
            [0, 0, 3, 7, 10, 15],
            [None, -0.5, -1.0, -2.0, -3.0, -9.0],
        ),
    ],
)
def test_score_reads_the_echo(
    server: FakeServer, tokens: list[str], offsets: list[int], values: list[float | None]
) -> None:
    server.say(server.json(echo(tokens, offsets, values)))
    score = model(server).score("The sky", " is blue")
    assert score.logprobs == (-2.0, -3.0)
    assert score.greedy
    assert server.last.body == {
        **{"model": "m", "prompt": "The sky is blue", "max_tokens": 1},
        **{"temperature": 0, "logprobs": 1, "echo": True},
    }


def test_score_at_odd_boundaries(server: FakeServer) -> None:
    lm = model(server)
    # A token across the boundary belongs to the continuation, and so does half a character.
    straddling = echo(["ab", "cd", "e", "!"], [0, 2, 4, 5], [None, -1.0, -2.0, -9.0])
    server.say(server.json(straddling))
    assert lm.score("abc", "de").logprobs == (-1.0, -2.0)
    halves = echo(["a", "", "譜", "!"], [0, 1, 1, 2], [None, -1.0, -2.0, -9.0])
    server.say(server.json(halves))
    assert lm.score("a", "譜").logprobs == (-1.0, -2.0)
    ids = echo(["a", "b", "c", "!"], [0, 1, 2, 3], [None, -1.0, -2.0, -9.0])
    ids["choices"][0]["logprobs"]["top_logprobs"][2] = {"c": -2.0, "z": -0.1}
    server.say(server.json(ids))
    score = lm.score([1], [2, 3])
    assert score.logprobs == (-1.0, -2.0)
    assert score.tokens == (2, 3)
    assert not score.greedy
    assert score.total == -3.0
    server.say(server.json(straddling))
    with pytest.raises(KeifuError, match="first token of an empty prompt"):
        lm.score("", "abcde")
    server.say(server.json({"choices": [{"text": "x", "logprobs": None}]}))
    with pytest.raises(KeifuError, match="echoed no log-probabilities"):
        lm.score("a", "b")
    with pytest.raises(KeifuError, match="both as text"):
        lm.score("a", [1])


def test_embeddings_in_any_order_and_encoding(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = base64.b64encode(struct.pack("<2f", 0.5, -1.0)).decode()
    data = [{"index": 1, "embedding": packed}, {"index": 0, "embedding": [1, 2]}]
    server.say(server.json({"data": data}))
    lm = model(server)
    assert lm.embed(["a", "b"]) == [[1.0, 2.0], [0.5, -1.0]]
    assert lm.embed([]) == []
    with pytest.raises(RemoteError, match="2 embeddings for 1 texts"):
        lm.embed(["a"])
    server.say(server.json({"data": [{"index": 0, "embedding": "AAA"}]}))
    with pytest.raises(RemoteError, match="malformed"):
        lm.embed(["a"])
    monkeypatch.setattr("keifu.lm.openai.OpenAILM.embed_batch", 2)
    two = server.json({"data": [{"index": i, "embedding": [i]} for i in (0, 1)]})
    server.say(two, server.json({"data": [{"index": 0, "embedding": [2]}]}))
    assert lm.embed(["a", "b", [7]]) == [[0.0], [1.0], [2.0]]
    assert [b["input"] for b in server.bodies] == [["a", "b"], [[7]]]


def test_counting_by_the_server(server: FakeServer) -> None:
    lm = model(server)
    server.say(server.json({"tokens": [1, 2, 3]}))
    assert lm.count_tokens("some text") == 3
    assert server.last.path == "/tokenize"
    assert server.last.body == {"model": "m", "prompt": "some text", "add_special_tokens": False}
    server.say(server.json({"count": 9, "tokens": [], "max_model_len": 10}))
    assert lm.count_tokens(ASK) == 9
    assert server.last.body["messages"] == ASK
    server.say(server.json({"detail": "Not Found"}, 404))
    with pytest.raises(UncountableError, match="pass tokenizer="):
        lm.count_tokens(ASK)


def test_counting_with_tiktoken_by_hand(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiktoken

    # A tokenizer of single bytes plus "hi": the cookbook's sum is worked out below.
    ranks = {bytes([i]): i for i in range(256)} | {b"hi": 256}
    encoding = tiktoken.Encoding(
        "tiny", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens={"<|end|>": 257}
    )
    asked = []

    def for_model(name: str) -> tiktoken.Encoding:
        asked.append(name)
        return encoding

    monkeypatch.setattr(tiktoken, "encoding_for_model", for_model)
    monkeypatch.setattr(OpenAILM, "vendor_url", f"{server.url}/v1")
    lm = load("openai:gpt-4", api_key="k")
    messages = [
        {"role": "system", "content": "ab"},  # 3 + 6 + 2
        {"role": "user", "name": "me", "content": "hi <|end|>"},  # 3 + 4 + (2 + 1) + 1 + 1 + 7
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},  # 3 + 4 + 1
    ]
    assert lm.count_tokens(messages) == 11 + 19 + 8 + 3
    assert lm.count_tokens("hi!") == 2
    assert set(asked) == {"gpt-4"}
    image = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    with pytest.raises(UncountableError, match="images"):
        lm.count_tokens([{"role": "user", "content": [image]}])
    with pytest.raises(UncountableError, match="tools"):
        lm.count_tokens(ASK, tools=[{"type": "function", "function": {"name": "f"}}])
    assert server.requests == []


def test_a_server_is_asked_what_it_serves(server: FakeServer) -> None:
    listed = {"data": [{"id": "tiny", "max_model_len": 2048}, {"id": "big"}]}
    server.say(server.json(listed))
    lm = load(f"{server.url}/v1#tiny")
    assert (lm.name, lm.context) == ("tiny", 2048)
    assert load(f"{server.url}/v1#tiny", ctx=99).context == 99
    with pytest.raises(KeifuError, match="no served model 'tinny'; nearest: tiny"):
        load(f"{server.url}/v1#tinny")
    with pytest.raises(KeifuError, match="known: big, tiny; name it after #"):
        load(f"{server.url}/v1")
    server.say(server.json({"data": [{"id": "only"}]}))
    assert load(f"{server.url}/v1").name == "only"
    server.say(server.json({"detail": "Not Found"}, 404))
    assert load(f"{server.url}/v1#unlisted").name == "unlisted"
    server.say(server.json(["?"]))
    with pytest.raises(RemoteError, match="no list of models"):
        load(f"{server.url}/v1#x")


def test_the_vendors_key_stays_with_the_vendor(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-vendor")
    server.say(server.json({"data": [{"id": "m"}]}))
    load(f"{server.url}/v1#m")
    assert "authorization" not in server.last.headers
    monkeypatch.setenv("KEIFU_API_KEY", "own")
    load(f"{server.url}/v1#m")
    assert server.last.headers["authorization"] == "Bearer own"
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
    server.say(server.json({"data": [{"index": 0, "embedding": [math.pi]}]}))
    load("openai:m").embed(["x"])
    assert server.last.headers["authorization"] == "Bearer sk-vendor"
