"""The default model behind the server: the openai client, typed errors, lm_eval's scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

import keifu.lm
from keifu.lm.base import LM
from tests.server.harness import Running, running

USER = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def lm(smollm2: Path) -> Iterator[LM]:
    lm = keifu.lm.load(str(smollm2), ctx=512, threads=2, parallel=2)
    yield lm
    lm.close()


@pytest.fixture(scope="module")
def house(lm: LM) -> Iterator[Running]:
    with running(lambda source: lm, parallel=2) as house:
        yield house


@pytest.fixture
def client(house: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key="x", max_retries=0) as client:
        yield client


def test_it_answers_and_streams_the_same(client: openai.OpenAI, lm: LM) -> None:
    settings = {"model": "fake", "messages": USER, "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**settings)
    text = whole.choices[0].message.content
    assert "Paris" in text
    chunks = client.chat.completions.create(**settings, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text
    assert lm.chat(USER, temperature=0, max_tokens=12).text == text
    assert whole.usage.prompt_tokens == lm.count_tokens(USER)


def test_typed_errors(client: openai.OpenAI) -> None:
    def ask(**fields: object) -> object:
        settings = {"model": "fake", "messages": USER, "max_tokens": 1, **fields}
        return client.chat.completions.create(**settings)

    with pytest.raises(openai.NotFoundError):
        ask(model="gpt-none")
    with pytest.raises(openai.BadRequestError) as long:
        ask(messages=[{"role": "user", "content": "word " * 600}])
    assert long.value.code == "context_length_exceeded"
    assert "512" in long.value.message
    for wrong, param in [
        ({"temperature": -1}, "temperature"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"extra_body": {"stop_token_ids": [99999999]}}, "stop_token_ids"),
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(**wrong)
        assert caught.value.param == param
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="fake", prompt=[99999999])
    ask()


def test_prompt_logprobs_as_lm_eval_reads_them(client: openai.OpenAI, lm: LM) -> None:
    before, after = "The capital of France is", " Paris, of course"
    first, rest = lm.encode(before), lm.encode(after, special=False)
    answer = client.completions.create(
        model="fake", prompt=[first + rest], max_tokens=1, echo=True, logprobs=1, temperature=0
    )
    scores = answer.choices[0].logprobs
    values = scores.token_logprobs
    assert len(values) == len(first) + len(rest) + 1
    want = lm.score(first, rest)
    assert values[len(first) : -1] == pytest.approx(want.logprobs, abs=1e-6)
    pairs = list(zip(values, scores.top_logprobs, strict=True))[len(first) : -1]
    greedy = all(value == max(top.values()) for value, top in pairs)
    assert greedy == want.greedy


def test_special_tokens_are_plain_text_unless_asked_for(house: Running, lm: LM) -> None:
    end = lm.tokenizer_info()["eos_token"]
    body = {"prompt": end, "add_special_tokens": False}
    assert len(house.http.post("/tokenize", json=body).json()["tokens"]) == 1
    plain = house.http.post("/tokenize", json=body | {"parse_special": False}).json()["tokens"]
    assert len(plain) > 1
    told = house.http.post("/detokenize", json={"tokens": plain}).json()
    assert told["prompt"] == end


def test_embeddings_are_marked_as_means(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="fake", input=["a cat", "a dog", "the stock market"])
    cat, dog, market = (d.embedding for d in answer.data)
    assert answer.model_extra == {"pooling": "mean"}

    def near(a: list[float], b: list[float]) -> float:
        norm = (sum(x * x for x in a) * sum(x * x for x in b)) ** 0.5
        return sum(x * y for x, y in zip(a, b, strict=True)) / norm

    assert near(cat, dog) > near(cat, market)


def test_a_client_that_leaves_frees_the_engine(house: Running, lm: LM) -> None:
    body = {"messages": USER, "stream": True, "ignore_eos": True}
    with house.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        line = next(answer.iter_lines())
        assert json.loads(line.removeprefix("data: "))["choices"]
    house.wait(lambda: house.gate.running == 0)
    house.still_good()
