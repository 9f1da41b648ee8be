"""Text completions: every kind of prompt, echo, log-probabilities, batches, streams."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import openai
import pytest

from tests.server.harness import BOS, FIRST, FakeLM, Running, bigram_logprobs, running

TABLE = bigram_logprobs()


def ids(text: str) -> list[int]:
    return [b + FIRST for b in text.encode()]


@pytest.fixture(scope="module")
def house() -> Iterator[Running]:
    def make(source: str) -> FakeLM:
        return FakeLM(source, reply={"fake": None, "mute": "", "says": "one. two"}[source])

    with running(make, sources=["fake", "mute", "says"]) as house:
        yield house


@pytest.fixture
def client(house: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key="x", max_retries=0) as client:
        yield client


def test_every_kind_of_prompt(house: Running, client: openai.OpenAI) -> None:
    one = client.completions.create(model="fake", prompt="ab", max_tokens=4, n=2)
    same = client.completions.create(model="fake", prompt=ids("ab"), max_tokens=4)
    assert house.lm().seen[-1]["prompt"] == ids("ab")  # no begin token put before ids
    assert len(one.choices) == 2
    assert {c.text for c in one.choices} == {same.choices[0].text}
    assert one.usage.prompt_tokens == 3
    assert same.usage.prompt_tokens == 2
    texts = client.completions.create(model="fake", prompt=["ab", "xyz"], max_tokens=4, n=2)
    assert [c.index for c in texts.choices] == [0, 1, 2, 3]
    assert texts.choices[0].text == texts.choices[1].text == same.choices[0].text
    assert texts.choices[2].text != texts.choices[0].text
    assert texts.usage.prompt_tokens == 3 + 4
    lists = client.completions.create(model="fake", prompt=[ids("ab"), ids("xyz")], max_tokens=4)
    assert [c.text for c in lists.choices] == [texts.choices[0].text, texts.choices[2].text]


def test_sixteen_tokens_by_default(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt="ab")
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


def test_stop_strings(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="says", prompt="ab", stop=["."])
    assert answer.choices[0].text == "one"
    assert answer.choices[0].finish_reason == "stop"


def test_echo_with_the_prompts_logprobs(client: openai.OpenAI) -> None:
    prompt = [*ids("hello")]
    answer = client.completions.create(
        model="fake", prompt=prompt, max_tokens=1, echo=True, logprobs=2
    )
    (choice,) = answer.choices
    assert choice.text.startswith("hello")
    scores = choice.logprobs
    assert scores.tokens[:5] == list("hello")
    assert "".join(scores.tokens) == choice.text
    assert scores.text_offset == [0, 1, 2, 3, 4, 5]
    assert scores.token_logprobs[0] is None
    assert scores.top_logprobs[0] is None
    assert scores.token_logprobs[1:5] == [TABLE[a, b] for a, b in itertools.pairwise(prompt)]
    for before, token, value, top in zip(
        prompt, prompt[1:], scores.token_logprobs[1:], scores.top_logprobs[1:], strict=False
    ):
        assert top[chr(token - FIRST)] == value
        assert max(top.values()) == TABLE[before].max()


def test_an_output_that_ends_at_once_still_counts_one_entry(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="mute", prompt=ids("hello"), max_tokens=1, echo=True, logprobs=1
    )
    assert len(answer.choices[0].logprobs.token_logprobs) == 6


def test_echo_without_new_tokens(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="fake", prompt="héllo", max_tokens=0, echo=True, logprobs=0
    )
    assert answer.choices[0].text == "héllo"
    assert len(answer.choices[0].logprobs.token_logprobs) == len("héllo".encode()) + 1


def test_vllms_prompt_logprobs(house: Running) -> None:
    body = {"model": "fake", "prompt": ids("ab"), "prompt_logprobs": 1, "max_tokens": 1}
    (choice,) = house.http.post("/v1/completions", json=body).json()["choices"]
    first, second = choice["prompt_logprobs"]
    assert first is None
    mine = second[str(ids("b")[0])]
    assert mine["logprob"] == TABLE[ids("a")[0], ids("b")[0]]
    assert mine["decoded_token"] == "b"
    best = [entry for entry in second.values() if entry["rank"] == 1]
    assert best[0]["logprob"] == TABLE[ids("a")[0]].max()


def test_best_of_and_what_is_refused(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt="ab", best_of=3, n=1, max_tokens=3)
    assert len(answer.choices) == 1
    assert answer.usage.completion_tokens == 9
    for wrong, param in [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1], ["a"]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"extra_body": {"response_format": {"type": "xml"}}}, "response_format"),
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**{"model": "fake", "prompt": "ab", **wrong})
        assert caught.value.param == param


def test_stream_of_a_batch(client: openai.OpenAI) -> None:
    whole = client.completions.create(
        model="fake", prompt=["ab", "xyz", "q"], max_tokens=6, echo=True, logprobs=1
    )
    chunks = client.completions.create(
        model="fake",
        prompt=["ab", "xyz", "q"],
        max_tokens=6,
        echo=True,
        logprobs=1,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, offsets, values = [""] * 3, [[], [], []], [[], [], []]
    usage = None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            offsets[choice.index] += choice.logprobs.text_offset
            values[choice.index] += choice.logprobs.token_logprobs
    assert texts == [c.text for c in whole.choices]
    assert offsets == [c.logprobs.text_offset for c in whole.choices]
    assert values == [c.logprobs.token_logprobs for c in whole.choices]
    assert usage == whole.usage


def test_tokenizer_routes(house: Running) -> None:
    for prefix in ("", "/v1"):
        post = house.http.post
        body = {"prompt": "hé", "add_special_tokens": False}
        assert post(f"{prefix}/tokenize", json=body).json()["tokens"] == ids("hé")
        answer = post(f"{prefix}/tokenize", json={"prompt": "hé", "return_token_strs": True}).json()
        assert answer["tokens"] == [BOS, *ids("hé")]
        assert answer["count"] == 4
        assert answer["max_model_len"] == 4096
        assert answer["token_strs"] == ["<bos>", "h", "\ufffd", "\ufffd"]
        assert post(f"{prefix}/detokenize", json={"tokens": ids("hé")}).json()["prompt"] == "hé"
        info = house.http.get(f"{prefix}/tokenizer_info").json()
        assert info["eos_token"] == "<eos>"
    eos = {"prompt": "<eos>", "add_special_tokens": False}
    assert house.http.post("/tokenize", json=eos).json()["tokens"] == [1]
    plain = eos | {"parse_special": False}
    assert house.http.post("/tokenize", json=plain).json()["tokens"] == ids("<eos>")
    llama = house.http.post("/tokenize", json={"content": "hé"}).json()
    assert llama["tokens"] == ids("hé")
    chat = {"messages": [{"role": "user", "content": "x"}]}
    text = house.http.post(
        "/detokenize", json={"tokens": house.http.post("/tokenize", json=chat).json()["tokens"]}
    ).json()["content"]
    assert text == "<bos>user: x\nassistant: "
    assert house.http.post("/tokenize", json={}).status_code == 400


def test_embeddings(client: openai.OpenAI, house: Running) -> None:
    answer = client.embeddings.create(model="fake", input=["ab", "c"])  # base64 on the wire
    assert [d.embedding for d in answer.data] == [
        [3.0, float(sum(ids("ab"))), 1.0, 0.5],
        [2.0, float(sum(ids("c"))), 1.0, 0.5],
    ]
    assert answer.usage.prompt_tokens == 5
    assert answer.model_extra == {"pooling": "mean"}
    floats = client.embeddings.create(model="fake", input=ids("ab"), encoding_format="float")
    assert floats.data[0].embedding == [2.0, float(sum(ids("ab"))), 1.0, 0.5]
    assert floats.usage.prompt_tokens == 2
    short = client.embeddings.create(model="fake", input=[[3, 4]], dimensions=2)
    norm = (2.0**2 + 7.0**2) ** 0.5
    assert short.data[0].embedding == pytest.approx([2.0 / norm, 7.0 / norm])
    many = client.embeddings.create(model="fake", input=["x"] * 70)
    assert [d.index for d in many.data] == list(range(70))
    for wrong, param in [({"dimensions": 5}, "dimensions"), ({"input": [""]}, "input")]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(**{"model": "fake", "input": "x", **wrong})
        assert caught.value.param == param
    wire = house.http.post("/v1/embeddings", json={"input": "x", "encoding_format": "base64"})
    assert isinstance(json.loads(wire.text)["data"][0]["embedding"], str)
