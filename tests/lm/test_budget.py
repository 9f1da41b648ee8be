"""The context budget: exact at limit-1, limit, limit+1; what each policy gives up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.inference.request import Message
from keifu.lm import load
from keifu.lm.budget import Budget, split_turns, upper_bound
from keifu.lm.openai import OpenAILM
from keifu.lm.scripted import ScriptedLM
from tests.lm.fake_server import FakeServer

LM = ScriptedLM()


def words(messages: Sequence[Message]) -> int:
    """One token a word, two a message: countable by hand."""
    return sum(2 + len(m["content"].split()) for m in messages)


def talk(*sizes: int) -> list[dict[str, Any]]:
    """Alternating user and assistant messages of so many words each."""
    return [
        {"role": ("user", "assistant")[i % 2], "content": " ".join([f"w{i}"] * size)}
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(("size", "fits"), [(87, True), (88, True), (89, False)])
def test_boundaries(size: int, fits: bool) -> None:
    budget = Budget(limit=100, reserve=10)
    messages = talk(size)  # size + 2 tokens; the room is 90
    if fits:
        fitted = budget.fit(messages, words)
        assert (fitted.prompt_tokens, fitted.dropped, fitted.cut) == (size + 2, 0, 0)
        return
    with pytest.raises(ContextLengthError) as caught:
        budget.fit(messages, words)
    error = caught.value
    assert (error.prompt_tokens, error.context, error.requested) == (91, 100, 10)
    assert "the prompt has 91 tokens plus 10 requested, but the context holds 100" in str(error)


def test_drop_oldest_keeps_the_system_message_and_whole_turns() -> None:
    system = {"role": "system", "content": "s s s"}
    call = {"role": "assistant", "content": "call"}
    result = {"role": "tool", "content": "r r r", "tool_call_id": "1"}
    first = [
        {"role": "user", "content": "a a"},
        call,
        result,
        {"role": "assistant", "content": "b"},
    ]
    second = talk(5, 5)
    last = [{"role": "user", "content": "q q"}]
    messages = [system, *first, *second, *last]
    # Tokens: 5 | 4 + 3 + 5 + 3 = 15 | 7 + 7 = 14 | 4
    assert words(messages) == 38
    budget = Budget(limit=39, policy="drop-oldest")
    assert budget.fit(messages, words).messages == tuple(messages)
    fitted = Budget(limit=38, policy="drop-oldest").fit(messages, words)
    assert fitted.messages == (system, *second, *last)
    assert (fitted.prompt_tokens, fitted.dropped) == (23, 4)
    fitted = Budget(limit=23, policy="drop-oldest").fit(messages, words)
    assert fitted.messages == (system, *last)
    assert (fitted.prompt_tokens, fitted.dropped) == (9, 6)
    with pytest.raises(ContextLengthError):
        Budget(limit=9, policy="drop-oldest").fit(messages, words)
    assert split_turns(messages) == ((system,), [tuple(first), tuple(second), tuple(last)])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(3, 80))
def test_no_fewer_turns_than_needed_are_dropped(sizes: list[int], limit: int) -> None:
    messages = talk(*sizes)
    _, turns = split_turns(messages)
    room = limit - 1
    fitting = [
        kept
        for drop in range(len(turns))
        if words(kept := [m for turn in turns[drop:] for m in turn]) <= room
    ]
    budget = Budget(limit=limit, policy="drop-oldest")
    if not fitting:
        with pytest.raises(ContextLengthError):
            budget.fit(messages, words)
    else:
        assert list(budget.fit(messages, words).messages) == fitting[0]


def letters(messages: Sequence[Message]) -> int:
    return sum(len(m["content"]) for m in messages)


def test_truncate_cuts_the_middle_and_no_more_than_needed() -> None:
    text = "".join(chr(ord("a") + i % 26) for i in range(1000))
    messages = [*talk(5, 5), {"role": "user", "content": text}]
    fitted = Budget(limit=501, policy="truncate").fit(messages, letters)
    assert len(fitted.messages) == 1
    assert fitted.dropped == 2
    cut = fitted.messages[0]["content"]
    assert fitted.prompt_tokens == len(cut) <= 500
    assert f"[… {fitted.cut} characters left out …]" in cut
    assert len(cut) == 500  # one character less cut would not fit
    start, end = cut.split("\n[…")[0], cut.split("…]\n")[1]
    assert text.startswith(start)
    assert text.endswith(end)
    assert abs(len(start) - len(end)) <= 1
    exactly = Budget(limit=1001, policy="truncate").fit(messages, letters)
    assert (exactly.messages[0], exactly.cut) == (messages[2], 0)
    with pytest.raises(ContextLengthError):
        Budget(limit=10, policy="truncate").fit(messages, letters)
    alone = [{"role": "system", "content": text}]
    with pytest.raises(ContextLengthError):
        Budget(limit=10, policy="truncate").fit(alone, letters)


def test_a_text_gives_up_its_start() -> None:
    text = "one two three four five"
    budget = Budget(limit=4, policy="truncate")
    assert budget.fit_text(text, LM.count_tokens) == " three four five"
    assert Budget(limit=6).fit_text(text, LM.count_tokens) == text
    with pytest.raises(ContextLengthError):
        Budget(limit=5).fit_text(text, LM.count_tokens)


@pytest.mark.parametrize(
    "bad", [{"limit": 0}, {"limit": 5, "reserve": -1}, {"limit": 5, "policy": "guess"}]
)
def test_senseless_budgets(bad: dict[str, Any]) -> None:
    with pytest.raises(KeifuError):
        Budget(**bad)


def test_upper_bound_is_one() -> None:
    import tiktoken

    # The worst tokenizer there is: a token a byte.
    bytes_only = tiktoken.Encoding(
        "bytes",
        pat_str=r"(?s).",
        mergeable_ranks={bytes([i]): i for i in range(256)},
        special_tokens={},
    )
    from keifu.lm.counting import chat_tokens

    messages = [
        {"role": "system", "content": "系譜 🙂"},
        {"role": "user", "name": "me", "content": [{"type": "text", "text": "a" * 500}]},
    ]
    bound = upper_bound(messages)
    assert bound is not None
    assert chat_tokens(messages, bytes_only.encode_ordinary) <= bound
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    assert upper_bound([picture]) is None


def test_the_first_chatgpt_holds_4096_tokens_in_and_out(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published 4096-token budget, enforced before sending and exact at its edge."""
    monkeypatch.setattr(OpenAILM, "vendor_url", f"{server.url}/v1")
    choice = {"index": 0, "delta": {"content": "ok"}, "finish_reason": "stop"}
    server.say(server.sse({"choices": [choice]}, done=True))

    def tokenizer(text: str) -> list[int]:
        return list(range(len(text.split())))

    lm = load("chatgpt", api_key="k", tokenizer=tokenizer)
    assert lm.context == 4096
    # 3 for the message, 1 for its role, 3 to prime the answer: 7 + 3889 words + 200 = 4096.
    for count, fits in ((3888, True), (3889, True), (3890, False)):
        messages = [{"role": "user", "content": " ".join(["tree"] * count)}]
        sent = len(server.requests)
        if fits:
            assert lm.chat(messages, max_tokens=200).text == "ok"
            assert len(server.requests) == sent + 1
        else:
            with pytest.raises(ContextLengthError, match="3897 tokens plus 200 requested"):
                lm.chat(messages, max_tokens=200)
            assert len(server.requests) == sent


def test_a_completion_is_checked_too(server: FakeServer) -> None:
    choice = {"index": 0, "text": "!", "finish_reason": "stop"}
    done = server.sse({"choices": [choice]}, done=True)
    server.say(server.json({"data": [{"id": "m", "max_model_len": 50}]}))
    lm = load(f"{server.url}/v1#m")
    server.say(done)
    assert lm.complete([1] * 45, max_tokens=5).text == "!"
    with pytest.raises(ContextLengthError, match="46 tokens plus 5"):
        lm.complete([1] * 46, max_tokens=5)
    assert len(server.requests) == 1
    server.say(server.json({"tokens": [0] * 49}), done)
    assert lm.complete("x" * 60).text == "!"
    assert [r.path for r in server.requests] == ["/tokenize", "/v1/completions"]
    server.say(server.json({"tokens": [0] * 50}), done)
    with pytest.raises(ContextLengthError, match="50 tokens plus 1"):
        lm.complete("x" * 60)


def test_claude_100k_and_gemini_1m_at_their_edges(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keifu.lm.anthropic import AnthropicLM
    from keifu.lm.gemini import GeminiLM

    monkeypatch.setattr(AnthropicLM, "vendor_url", server.url)
    monkeypatch.setattr(GeminiLM, "vendor_url", server.url)
    book = [{"role": "user", "content": "long " * 300_000}]
    for name, counted, limit in (
        ("claude-100k", "input_tokens", 100_000),
        ("gemini-1.5", "totalTokens", 1_048_576),
    ):
        lm = load(name, api_key="k")
        assert lm.context == limit
        for prompt, fits in ((limit - 1001, True), (limit - 1000, True), (limit - 999, False)):
            server.say(server.json({counted: prompt}), server.json({"error": {}}, 400))
            with pytest.raises(KeifuError) as caught:
                lm.chat(book, max_tokens=1000)
            assert isinstance(caught.value, ContextLengthError) != fits
            assert len(server.requests) == 1 + fits
