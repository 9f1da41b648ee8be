"""The scripted model: exact prompts, honest failures, streams and cuts like a real one."""

from __future__ import annotations

import asyncio
import time

import pytest

from keifu.core.errors import KeifuError
from keifu.inference.request import Sampling, ToolCall, Usage
from keifu.lm.base import ChatOptions
from keifu.lm.scripted import Reply, ScriptedLM, UnexpectedPrompt, WordTokenizer, transcript

CALL = ToolCall("call_1", "add", '{"a": 2}')
TOOL = {"type": "function", "function": {"name": "add"}}


def test_a_prompt_and_its_reply() -> None:
    lm = ScriptedLM({"2 + 2 =": " 4", "hi": "hello"})
    assert lm.complete("2 + 2 =").text == " 4"
    assert lm.chat([{"role": "user", "content": "hi"}]).text == "hello"
    assert lm.complete("2 + 2 =").usage == Usage(4, 1)
    assert lm.prompts == ["2 + 2 =", "hi", "2 + 2 ="]
    assert [r.verb for r in lm.requests] == ["complete", "chat", "complete"]
    lm.assert_done()


def test_an_unexpected_prompt_shows_the_difference() -> None:
    lm = ScriptedLM({"line one\nline two": "x", "something else": "y"})
    with pytest.raises(UnexpectedPrompt) as caught:
        lm.complete("line one\nline 2")
    assert "-line two\n+line 2" in str(caught.value)
    assert not isinstance(caught.value, KeifuError)  # nobody's error handling may swallow it
    with pytest.raises(UnexpectedPrompt, match="nothing is scripted"):
        ScriptedLM().complete("x")
    with pytest.raises(AssertionError, match="never asked for"):
        lm.assert_done()


def test_a_list_answers_in_turn_and_ends() -> None:
    lm = ScriptedLM({"roll": ["3", "5", "1"]})
    assert lm.complete("roll").text == "3"
    assert [c.text for c in lm.complete("roll", n=2).choices] == ["5", "1"]
    with pytest.raises(UnexpectedPrompt, match="asked 4 times, but the script has 3"):
        lm.complete("roll")


def test_conversations_are_keyed_by_everything_the_model_reads() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "function": {"name": "add", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
    ]
    text = "[system]\nBe brief.\n\n[user]\n2 + 2?\n\n[assistant]\n-> c1 add({})\n\n[tool c1]\n4"
    assert transcript(messages, ChatOptions()) == text
    lm = ScriptedLM([(messages, "four")])
    assert lm.chat(messages).text == "four"
    changed = [*messages[:3], {**messages[3], "content": "5"}]
    for other, tools in ((changed, []), (messages, [TOOL])):
        with pytest.raises(UnexpectedPrompt):
            lm.chat(other, tools=tools)
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    other = {"type": "image_url", "image_url": {"url": "data:image/png;base64,BBBB"}}
    first, second = (
        transcript([{"role": "user", "content": [p]}], ChatOptions()) for p in (picture, other)
    )
    assert first.startswith("<image_url ")
    assert first != second
    with pytest.raises(KeifuError, match="two scripts for one prompt"):
        ScriptedLM([("a", "1"), ("a", "2")])


def test_a_function_sees_the_request() -> None:
    lm = ScriptedLM.from_function(lambda r: f"{r.verb} {r.prompt} {r.sampling.temperature:g}")
    assert lm.complete("x", temperature=0).text == "complete x 0"
    assert lm.requests[0].options == {"temperature": 0}
    assert lm.requests[0].sampling == Sampling(temperature=0)


def test_pieces_tokens_logprobs() -> None:
    reply = Reply(pieces=("Hel", "lo wor", "ld"), logprobs=(-0.5, -1.0))
    lm = ScriptedLM({"x": reply})
    pieces = list(lm.complete_stream("x", logprobs=0))
    assert [p.text for p in pieces] == ["Hel", "lo wor", "ld", ""]
    # A token comes with the piece in which it ends.
    assert [lm.decode(p.tokens) for p in pieces] == ["", "Hello", " world", ""]
    assert [t.logprob for p in pieces for t in p.logprobs] == [-0.5, -1.0]
    assert pieces[-1].finish == "stop"
    assert lm.complete("x").choices[0].logprobs == ()


def test_stop_and_max_tokens_cut_as_a_models_do() -> None:
    lm = ScriptedLM({"q": Reply(pieces=("Thought: a\nObs", "ervation: made up"))})
    answer = lm.complete("q", stop=("Observation:", "zzz")).choices[0]
    assert (answer.text, answer.finish, answer.stop) == ("Thought: a\n", "stop", "Observation:")
    kept = lm.complete("q", stop=("Observation:",), include_stop=True)
    assert kept.text == "Thought: a\nObservation:"
    short = lm.complete("q", max_tokens=3)
    assert (short.text, short.finish) == ("Thought: a", "length")
    assert short.usage.completion_tokens == 3


def test_tool_calls_usage_and_failures() -> None:
    boom = RuntimeError("boom")
    lm = ScriptedLM(
        {
            "call": Reply(tool_calls=(CALL,), usage=Usage(7, 8)),
            "dies": Reply(pieces=("a", "b", "c"), error=boom, fail_at=2),
            "dead": boom,
        }
    )
    answer = lm.complete("call")
    assert (answer.tool_calls, answer.finish, answer.usage) == ((CALL,), "tool_calls", Usage(7, 8))
    stream = iter(lm.complete_stream("dies"))
    assert [next(stream).text, next(stream).text] == ["a", "b"]
    with pytest.raises(RuntimeError, match="boom"):
        next(stream)
    with pytest.raises(RuntimeError, match="boom"):
        lm.complete("dead")


def test_delay_and_cancel() -> None:
    lm = ScriptedLM(
        {"slow": Reply(pieces=("a", "b"), delay=5), "brisk": Reply(text="x", delay=0.01)}
    )
    start = time.monotonic()
    stream = lm.complete_stream("slow", n=2)
    stream.cancel()
    assert [c.finish for c in stream.result().choices] == ["cancelled", "cancelled"]
    assert time.monotonic() - start < 2
    assert asyncio.run(lm.acomplete("brisk")).text == "x"


def test_scores() -> None:
    lm = ScriptedLM(scores={("Q:", " yes"): -1.0, ("Q:", " no no"): -4.0, ("P:", " a b"): [-1, -2]})
    assert lm.score("Q:", " yes").greedy
    worse = lm.score("Q:", " no no")
    assert (worse.logprobs, worse.greedy) == ((-2.0, -2.0), False)
    assert lm.decode(worse.tokens) == " no no"
    assert lm.score("P:", " a b").logprobs == (-1, -2)
    with pytest.raises(UnexpectedPrompt, match="unexpected score"):
        lm.score("Q:", " maybe")
    with pytest.raises(KeifuError, match="2 log-probabilities for 1 tokens"):
        ScriptedLM(scores={("a", "b"): [-1, -2]}).score("a", "b")


def test_embeddings() -> None:
    one, same, other = ScriptedLM().embed(["the black cat", "black cat, the", "stock prices"])
    assert one == pytest.approx(same)
    assert sum(v * v for v in one) == pytest.approx(1)
    assert sum(a * b for a, b in zip(one, other, strict=True)) < 0.5
    lm = ScriptedLM(embeddings={"a": [1, 0]})
    assert lm.embed(["a"]) == [[1, 0]]
    with pytest.raises(UnexpectedPrompt):
        lm.embed(["b"])


def test_tokens_round_trip() -> None:
    tokenizer = WordTokenizer()
    for text in ("", "Hello, world!", "  two  spaces\n\nand\ttabs ", "系譜は木だ。", "🙂 a🙂"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("Hello, world!")) == 4
    lm = ScriptedLM({"Hello you": "x"})
    assert lm.complete(lm.encode("Hello you")).text == "x"
    assert lm.count_tokens([{"role": "user", "content": "a b c"}]) == 3
    with pytest.raises(KeifuError, match="never made"):
        lm.decode([999])
