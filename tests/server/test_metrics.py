"""/metrics: names that boards ask for, and counters that say exactly what happened."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from torch import Tensor

from keifu.families.llama import Llama
from keifu.inference.drafters.lookup import Lookup
from keifu.inference.engine import Engine
from keifu.inference.meter import Histogram
from keifu.inference.runner import Runner, TorchRunner
from keifu.inference.speculation import Draft
from keifu.lm.base import LM
from keifu.lm.local import LocalLM
from keifu.nn.stack import StackModule
from keifu.nn.state import StatePool
from keifu.server.settings import Access
from tests.inference.test_engine import VOCAB, byte_tokenizer
from tests.inference.test_speculation import eager
from tests.server.harness import FakeLM, Running, running

pytestmark = pytest.mark.usefixtures("one_thread")

Samples = dict[str, list[tuple[dict[str, str], float]]]

VLLM = {
    "gauge": "num_requests_running num_requests_waiting kv_cache_usage_perc gpu_cache_usage_perc "
    "cache_config_info",
    "counter": "prompt_tokens generation_tokens request_success num_preemptions "
    "prefix_cache_queries prefix_cache_hits gpu_prefix_cache_queries gpu_prefix_cache_hits",
    "histogram": "time_to_first_token_seconds time_per_output_token_seconds "
    "inter_token_latency_seconds e2e_request_latency_seconds request_queue_time_seconds "
    "request_prefill_time_seconds request_decode_time_seconds request_inference_time_seconds "
    "request_prompt_tokens request_generation_tokens request_params_n request_params_max_tokens "
    "iteration_tokens_total request_max_num_generation_tokens "
    "request_time_per_output_token_seconds",
}
"""What vLLM 1 exposes (vllm/v1/metrics/loggers.py, read in November 2026; older spellings too).
Not `lora_requests_info`, which it has only where it serves adapters."""
SPECULATION = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
"""With `spec_decode_` before them, the counters of vllm/v1/spec_decode/metrics.py."""
TTFT = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5]
TTFT += [10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0]
"""vLLM's bounds for the time to first token."""


@pytest.fixture(scope="module")
def model() -> StackModule:
    made = Llama.tiny().spec().build()
    assert isinstance(made, StackModule)
    return made.initialise(seed=0, std=0.5).eval()


class Slow(TorchRunner):
    """Takes its time."""

    def run(self, *step: Any) -> Tensor:
        time.sleep(0.02)
        return super().run(*step)


@contextmanager
def serving(
    model: StackModule, slow: bool = False, draft: Draft | None = None, **options: Any
) -> Iterator[Running]:
    """A server of a real engine over a tiny random model."""

    def runners(model: StackModule, pool: StatePool, context: int) -> tuple[list[Runner], str]:
        return ([Slow(model, pool)] if slow else []), ""

    def make(source: str) -> LM:
        room = {"context": 2048, "parallel": 2, "budget": 1 << 20}
        engine = Engine(model, byte_tokenizer(), runners=runners, draft=draft, **room)
        return LocalLM(source, engine, byte_tokenizer(), {})

    with running(make, sources=("tiny",), **options) as house:
        yield house


def complete(house: Running, prompt: list[int], **more: Any) -> httpx.Response:
    body = {"prompt": prompt, "temperature": 0, **more}
    return house.http.post("/v1/completions", json=body)


def read(house: Running) -> Samples:
    answer = house.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(found: Samples, name: str, **labels: str) -> float:
    """The one sample of that name that has these labels."""
    (only,) = [v for have, v in found.get(name, []) if labels.items() <= have.items()]
    return only


def test_names_and_types_are_vllms(model: StackModule) -> None:
    with serving(model) as house:
        text = house.http.get("/metrics").text
    types = dict(line.split()[2:] for line in text.splitlines() if line.startswith("# TYPE"))
    for kind, names in VLLM.items():
        for name in names.split():
            full = f"vllm:{name}_total" if kind == "counter" else f"vllm:{name}"
            assert types.pop(full) == kind, name
            ours = full.replace("vllm:", "keifu_")
            if name not in ("time_per_output_token_seconds",) and "gpu" not in name:
                assert types.pop(ours) == kind, ours
    assert not [name for name in types if name.startswith("vllm:")]
    assert set(types) == {
        "keifu_build_info",
        "keifu_replicas",
        "keifu_replicas_wanted",
        *(f"keifu_requests_{n}_total" for n in ("admitted", "cancelled", "failed", "rejected")),
    }


def test_bounds_are_vllms(model: StackModule) -> None:
    with serving(model) as house:
        found = read(house)
    series = found["vllm:time_to_first_token_seconds_bucket"]
    assert [labels["le"] for labels, _ in series] == [*map(str, TTFT), "+Inf"]
    gaps = [labels["le"] for labels, _ in found["vllm:inter_token_latency_seconds_bucket"]]
    theirs = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5]
    assert gaps[3:-1] == [*map(str, theirs), "10.0", "20.0", "40.0", "80.0"]


def test_every_request_is_counted_once(model: StackModule) -> None:
    prompt = list(range(3, 43))
    with serving(model) as house:
        first = complete(house, prompt, max_tokens=5)
        again = complete(house, prompt, max_tokens=7)
        ended = complete(house, [9, 8, 7], max_tokens=9, stop_token_ids=list(range(VOCAB)))
        two = complete(house, [5, 4, 3, 2], max_tokens=3, n=2)
        for wrong in (
            house.http.post("/v1/completions", json={"prompt": "x", "temperature": -1}),
            complete(house, [3] * 4000, max_tokens=1),
            house.http.post("/v1/completions", json={"prompt": "x", "model": "secret-name"}),
            house.http.get("/nothing"),
        ):
            assert wrong.status_code in (400, 404)
        found = read(house)

    usages = [answer.json()["usage"] for answer in (first, again, ended, two)]
    for prefix in ("vllm:", "keifu_"):

        def of(name: str, prefix: str = prefix, **labels: str) -> float:
            return value(found, prefix + name, model_name="tiny", engine="0", **labels)

        assert of("prompt_tokens_total") == sum(u["prompt_tokens"] for u in usages) == 87
        assert of("generation_tokens_total") == sum(u["completion_tokens"] for u in usages) == 19
        assert of("request_success_total", finished_reason="length") == 4
        assert of("request_success_total", finished_reason="stop") == 1
        assert of("request_success_total", finished_reason="abort") == 0
        assert of("request_success_total", finished_reason="error") == 0
        assert of("num_requests_running") == of("num_requests_waiting") == 0
        assert of("num_preemptions_total") == 0
        assert of("kv_cache_usage_perc") == 0
        # All but the last token of each prompt is looked for.
        assert of("prefix_cache_queries_total") == 39 + 39 + 2 + 3
        assert of("prefix_cache_hits_total") == 39
        for name in (
            "time_to_first_token_seconds",
            "e2e_request_latency_seconds",
            "request_queue_time_seconds",
            "request_prefill_time_seconds",
            "request_decode_time_seconds",
            "request_inference_time_seconds",
            "request_prompt_tokens",
            "request_generation_tokens",
            "request_params_n",
            "request_max_num_generation_tokens",
            "request_params_max_tokens",
        ):
            assert of(f"{name}_count") == 4, name
        assert of("request_prompt_tokens_sum") == 87
        assert of("request_generation_tokens_sum") == 19
        assert of("request_params_n_sum") == 5
        assert of("request_params_max_tokens_sum") == 5 + 7 + 9 + 3
        assert of("request_max_num_generation_tokens_sum") == 5 + 7 + 1 + 3
        assert of("request_time_per_output_token_seconds_count") == 3  # one has a single token
        assert of("inter_token_latency_seconds_count") == 19 - 5  # between tokens of 5 outputs
        # What the model read: prompts but for what was there, and all tokens but the last ones;
        # both outputs of one request go on from one prompt, and in one step.
        assert of("iteration_tokens_total_sum") == 40 + 4 + 1 + 6 + 3 + 4 + 2 * 2
        assert of("iteration_tokens_total_count") == 1 + 4 + 1 + 6 + 1 + 1 + 2
        parts = ("request_queue_time_seconds_sum", "request_inference_time_seconds_sum")
        assert 0 < sum(map(of, parts)) <= of("e2e_request_latency_seconds_sum")
        assert of("request_inference_time_seconds_sum") == pytest.approx(
            of("request_prefill_time_seconds_sum") + of("request_decode_time_seconds_sum")
        )
    (info,) = [labels for labels, _ in found["vllm:cache_config_info"]]
    assert info["block_size"] == "32"
    assert info["num_gpu_blocks"] == str((1 << 20) // (32 * 2 * 2 * 2 * 8 * 4))
    rejected = {labels["reason"]: v for labels, v in found["keifu_requests_rejected_total"]}
    assert rejected == {
        "queue_full": 0,
        "invalid_request_error": 1,
        "context_length_exceeded": 1,
        "model_not_found": 1,
        "not_found_error": 1,
    }
    assert value(found, "keifu_requests_admitted_total") == 7
    assert value(found, "keifu_requests_failed_total") == 0


def test_guesses_are_counted(model: StackModule) -> None:
    """A random model soon repeats itself, so that what came before foretells what comes."""
    with serving(model, draft=eager(lambda target: Lookup())) as house:
        done = complete(house, [3, 4, 5], max_tokens=150, ignore_eos=True).json()
        (lm,) = house.loaded["tiny"]
        assert isinstance(lm, LocalLM)
        assert lm.engine.speculation is not None
        guesses = lm.engine.speculation
        counts = (guesses.drafts, guesses.drafted, guesses.accepted)
        assert guesses.drafted >= guesses.accepted > 0
        for name, count in zip(SPECULATION, counts, strict=True):
            for prefix in ("vllm:", "keifu_"):
                assert house.metric(f"{prefix}spec_decode_{name}_total", engine="0") == count
        told = house.metric("vllm:generation_tokens_total")
    assert told == done["usage"]["completion_tokens"] == 150


def test_a_full_house_and_a_client_that_leaves(model: StackModule) -> None:
    with serving(model, slow=True, parallel=1, queue=0) as house:
        body = {"prompt": [3, 4, 5], "max_tokens": 2000, "stream": True, "ignore_eos": True}
        with (
            httpx.Client(base_url=house.url, trust_env=False) as client,
            client.stream("POST", "/v1/completions", json=body, timeout=60) as answer,
        ):
            pieces = answer.iter_raw()  # kept, or the client would leave here
            next(pieces)
            during = read(house)
            assert value(during, "vllm:num_requests_running") == 1
            assert 0 < value(during, "vllm:kv_cache_usage_perc") < 0.6
            assert value(during, "vllm:generation_tokens_total") > 0  # before it ends
            assert complete(house, [3]).status_code == 429
        house.wait(lambda: value(read(house), "keifu_requests_cancelled_total") == 1)
        house.wait(lambda: value(read(house), "vllm:num_requests_running") == 0)
        house.wait(lambda: value(read(house), "vllm:kv_cache_usage_perc") == 0)
        found = read(house)
    assert value(found, "keifu_requests_rejected_total", reason="queue_full") == 1
    assert value(found, "vllm:request_success_total", finished_reason="abort") == 1
    assert value(found, "vllm:request_success_total", finished_reason="length") == 0
    assert value(found, "vllm:e2e_request_latency_seconds_count") == 0
    assert value(found, "vllm:time_to_first_token_seconds_count") == 1


def test_time_in_the_queue_is_the_requests_own() -> None:
    """Two requests at once, one place: the second one waits as long as the first one runs."""
    with running(lambda s: FakeLM(s, reply="abcdefghij", delay=0.03), parallel=1) as house:
        with httpx.Client(base_url=house.url, trust_env=False) as client:
            body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
            with client.stream("POST", "/v1/chat/completions", json=body) as first:
                pieces = first.iter_raw()
                next(pieces)
                assert house.chat("second").status_code == 200
        found = read(house)
    queued = value(found, "keifu_request_queue_time_seconds_sum")
    assert 0.2 < queued < value(found, "keifu_e2e_request_latency_seconds_sum") - 0.5
    assert value(found, "keifu_time_to_first_token_seconds_sum") > queued
    # A model without an engine of ours has no rows of one.
    assert "vllm:kv_cache_usage_perc" not in found


def test_deadlines_and_vectors() -> None:
    with running(lambda s: FakeLM(s, reply="z" * 3000, delay=0.02), deadline=0.3) as house:
        assert house.chat().json()["choices"][0]["finish_reason"] == "length"
        vectors = house.http.post("/v1/embeddings", json={"input": ["abc", "de"]}).json()
        found = read(house)
    assert value(found, "vllm:request_success_total", finished_reason="length") == 1
    assert value(found, "vllm:request_success_total", finished_reason="stop") == 1
    assert value(found, "vllm:e2e_request_latency_seconds_count") == 2
    assert value(found, "vllm:time_to_first_token_seconds_count") == 1
    series = found["keifu_request_prompt_tokens_bucket"]
    assert [v for labels, v in series if labels["le"] == "10.0"] == [1]
    assert vectors["usage"]["prompt_tokens"] <= 10
    assert value(found, "keifu_requests_cancelled_total") == 0


def test_a_model_that_breaks_is_counted() -> None:
    with running(lambda s: FakeLM(s, reply="abcdef", breaks_at=3)) as house:
        assert house.chat().status_code == 500
        found = read(house)
    assert value(found, "keifu_requests_failed_total") == 1
    assert value(found, "keifu_request_success_total", finished_reason="error") == 1
    assert value(found, "keifu_requests_rejected_total") == 0


def test_no_prompt_no_key_and_no_foreign_word_in_it(model: StackModule) -> None:
    key = "a-key-of-mine"
    with serving(model, access=Access(key=key)) as house:
        house.http.headers["authorization"] = f"Bearer {key}"
        body = {
            "prompt": "LIGHTHOUSE",
            "model": "FOREIGN",
            "user": "SOMEBODY",
            "cache_salt": "SALT",
        }
        assert house.http.post("/v1/completions", json=body).status_code == 404
        body["model"] = "tiny"
        assert house.http.post("/v1/completions", json=body).status_code == 200
        text = house.http.get("/metrics").text
        assert house.http.get("/metrics", headers={"authorization": ""}).status_code == 401
        found = read(house)
    for word in ("LIGHTHOUSE", "FOREIGN", "PERSON", "SALT", key):
        assert word not in text
    assert value(found, "keifu_requests_rejected_total", reason="invalid_api_key") == 1


def test_only_our_own_names(model: StackModule) -> None:
    with running(FakeLM, compat="none") as house:
        text = house.http.get("/metrics").text
    assert "vllm" not in text
    assert "keifu_num_requests_running" in text


def test_a_value_on_a_bound_is_below_it() -> None:
    values = Histogram((1, 2, 5))
    for value in (0.5, 1, 1.5, 2, 5, 6):
        values.add(value)
    assert values.counts == [2, 2, 1, 1]
    assert (values.count, values.total) == (6, 16)
