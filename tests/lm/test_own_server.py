"""Our clients against our own server: over HTTP a model says what it says in process."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator

import pytest

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.lm import LM, load
from keifu.lm.anthropic import AnthropicLM
from keifu.lm.errors import AuthenticationError
from keifu.lm.remote import RemoteOptions
from keifu.server.settings import Access
from tests.server.harness import FakeLM, Running, running

ASK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
CALLING = 'On it.\n<tool_call>{"name": "weather", "arguments": {"city": "京都"}}</tool_call>'
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def house() -> Iterator[Running]:
    with running() as house:
        yield house


@pytest.fixture
def local() -> FakeLM:
    return FakeLM()


@pytest.fixture
def remote(house: Running) -> Iterator[LM]:
    lm = load(f"{house.url}/v1#fake")
    yield lm
    lm.close()


def test_texts_usage_and_logprobs(remote: LM, local: FakeLM) -> None:
    assert remote.context == local.context
    for there, here in (
        (remote.chat(ASK, max_tokens=12), local.chat(ASK, max_tokens=12)),
        (
            remote.complete("Once", max_tokens=6, logprobs=2),
            local.complete("Once", max_tokens=6, logprobs=2),
        ),
        (
            remote.complete(local.encode("Once"), max_tokens=6),
            local.complete(local.encode("Once"), max_tokens=6),
        ),
    ):
        assert there.text == here.text
        assert there.finish == here.finish == "length"
        assert there.usage == here.usage
        assert [t.logprob for t in there.choices[0].logprobs] == pytest.approx(
            [t.logprob for t in here.choices[0].logprobs]
        )


def test_scores(remote: LM, local: FakeLM) -> None:
    for prompt, continuation in (("The sky", " is blue"), ("x", "y"), ("", "abc")):
        there, here = remote.score(prompt, continuation), local.score(prompt, continuation)
        assert there.logprobs == pytest.approx(here.logprobs)
        assert there.greedy == here.greedy
    ids = local.encode("The sky is blue")
    there = remote.score(ids[:5], ids[5:])
    assert there.logprobs == pytest.approx(
        [local.scored(a, b, 1).logprob for a, b in itertools.pairwise(ids[4:])]
    )
    assert there.tokens == tuple(ids[5:])


def test_vectors_and_counts(remote: LM, local: FakeLM) -> None:
    assert remote.embed(["a", "bcd"]) == local.embed(["a", "bcd"])
    assert remote.count_tokens(ASK) == local.count_tokens(ASK)
    assert remote.count_tokens("hello") == 5


def test_cancel_reaches_the_model(house: Running) -> None:
    with running(lambda source: FakeLM(source, delay=0.02)) as slow:
        stream = load(f"{slow.url}/v1#fake").chat_stream(ASK, max_tokens=500)
        next(iter(stream))
        stream.cancel()
        slow.wait(lambda: slow.lm().cancels == 1)


def test_too_long_is_refused_on_either_side(house: Running) -> None:
    long = [{"role": "user", "content": "x" * 5000}]
    ours = load(f"{house.url}/v1#fake")
    # One to begin, 6 for "user: ", 12 for the answer's heading.
    with pytest.raises(ContextLengthError, match="5019 tokens plus 1 requested"):
        ours.chat(long)
    with pytest.raises(ContextLengthError) as caught:
        load(f"{house.url}/v1#fake", ctx=10**6).chat(long)
    assert "HTTP 400" in str(caught.value)
    house.still_good()


def test_tools_through_both_protocols() -> None:
    with running(lambda source: FakeLM(source, reply=CALLING)) as house:
        options = RemoteOptions(base_url=house.url)
        for lm in (load(f"{house.url}/v1#fake"), AnthropicLM("fake", options)):
            answer = lm.chat(ASK, tools=[TOOL], max_tokens=200)
            assert answer.finish == "tool_calls"
            assert answer.text.strip() == "On it."
            assert [c.name for c in answer.tool_calls] == ["weather"]
            assert json.loads(answer.tool_calls[0].arguments) == {"city": "京都"}


def test_the_messages_protocol(house: Running, local: FakeLM) -> None:
    lm = AnthropicLM("fake", RemoteOptions(base_url=house.url))
    there, here = lm.chat(ASK, max_tokens=9), local.chat(ASK, max_tokens=9)
    assert (there.text, there.finish, there.usage) == (here.text, "length", here.usage)
    assert lm.chat(ASK, max_tokens=9, temperature=0).text == here.text
    assert lm.count_tokens(ASK) == local.count_tokens(ASK)
    assert len(asyncio.run(lm.achat(ASK, max_tokens=3, n=3)).choices) == 3


def test_keys_and_names(house: Running) -> None:
    with pytest.raises(KeifuError, match="no served model 'fale'; nearest: fake"):
        load(f"{house.url}/v1#fale")
    with running(access=Access(key="open-sesame")) as locked:
        with pytest.raises(AuthenticationError, match="API key"):
            load(f"{locked.url}/v1#fake")
        assert load(f"{locked.url}/v1#fake", api_key="open-sesame").chat(ASK, max_tokens=2).text
        lm = AnthropicLM("fake", RemoteOptions(base_url=locked.url, api_key="open-sesame"))
        assert lm.chat(ASK, max_tokens=2).text
