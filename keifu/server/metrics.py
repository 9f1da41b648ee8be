"""GET /metrics: reports as Prometheus text, under our names and, if wanted, under vLLM's."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from keifu.inference.meter import Histogram, Statistics
from keifu.server.health import Everyone, Report
from keifu.server.settings import Compat
from keifu.server.tally import Tally

if TYPE_CHECKING:
    from prometheus_client import Metric

Labels = tuple[tuple[str, str], ...]
Value = float | Histogram
Found = Sequence[tuple[Labels, Value]]
"""Values of one model, by the labels that they have besides the model's and the engine's."""


@dataclass(frozen=True)
class Row:
    """One metric of a model: its name without a prefix, and where its values are."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    read: Callable[[Tally, Statistics | None], Found]
    older: tuple[str, ...] = ()
    """What vLLM called it once; boards ask for these, too."""


def _of(read: Callable[[Tally], Value]) -> Callable[[Tally, Statistics | None], Found]:
    """What the server counts."""
    return lambda tally, engine: [((), read(tally))]


def _in(read: Callable[[Statistics], Value]) -> Callable[[Tally, Statistics | None], Found]:
    """What an engine counts, where there is one."""
    return lambda tally, engine: [] if engine is None else [((), read(engine))]


def _guessed(index: int) -> Callable[[Tally, Statistics | None], Found]:
    def read(tally: Tally, engine: Statistics | None) -> Found:
        if engine is None or engine.guesses is None:
            return []
        return [((), engine.guesses[index])]

    return read


def _running(tally: Tally, engine: Statistics | None) -> Found:
    return [((), max(tally.running - (engine.waiting if engine else 0), 0))]


def _waiting(tally: Tally, engine: Statistics | None) -> Found:
    return [((), tally.waiting + (engine.waiting if engine else 0))]


REASONS = ("stop", "length", "abort", "error")


def _ended(tally: Tally, engine: Statistics | None) -> Found:
    return [((("finished_reason", why),), tally.ended[why]) for why in REASONS]


def _cache(tally: Tally, engine: Statistics | None) -> Found:
    if engine is None:
        return []
    labels = {
        "block_size": engine.page,
        "cache_dtype": engine.dtype,
        "num_gpu_blocks": engine.pages,
        "enable_prefix_caching": engine.prefixes,
    }
    return [(tuple((name, str(value)) for name, value in labels.items()), 1)]


ROWS = (
    Row("num_requests_running", "gauge", "Requests at work.", _running),
    Row("num_requests_waiting", "gauge", "Requests that wait for a place or room.", _waiting),
    Row(
        "kv_cache_usage_perc",
        "gauge",
        "Share of the state budget that requests hold, 0 to 1.",
        _in(lambda e: e.used),
        ("gpu_cache_usage_perc",),
    ),
    Row("cache_config_info", "gauge", "How state is kept; always 1.", _cache),
    Row("prompt_tokens", "counter", "Tokens of prompts.", _in(lambda e: e.meter.prompt)),
    Row("generation_tokens", "counter", "Tokens generated.", _in(lambda e: e.meter.generated)),
    Row("request_success", "counter", "Outputs that ended, by reason.", _ended),
    Row(
        "num_preemptions",
        "counter",
        "Requests that gave way and waited again.",
        _in(lambda e: e.meter.preempted),
    ),
    Row(
        "prefix_cache_queries",
        "counter",
        "Prompt tokens looked for among what was read.",
        _in(lambda e: e.meter.sought),
        ("gpu_prefix_cache_queries",),
    ),
    Row(
        "prefix_cache_hits",
        "counter",
        "Prompt tokens found there.",
        _in(lambda e: e.meter.found),
        ("gpu_prefix_cache_hits",),
    ),
    Row("spec_decode_num_drafts", "counter", "Steps with guesses.", _guessed(0)),
    Row("spec_decode_num_draft_tokens", "counter", "Tokens guessed.", _guessed(1)),
    Row("spec_decode_num_accepted_tokens", "counter", "Guesses that were right.", _guessed(2)),
    Row(
        "iteration_tokens_total",
        "histogram",
        "Tokens of a step of the model.",
        _in(lambda e: e.meter.steps),
    ),
    Row(
        "time_to_first_token_seconds",
        "histogram",
        "From arrival to the first token.",
        _of(lambda t: t.first),
    ),
    Row(
        "inter_token_latency_seconds",
        "histogram",
        "From a token to the next.",
        _in(lambda e: e.meter.gaps),
        ("time_per_output_token_seconds",),
    ),
    Row("e2e_request_latency_seconds", "histogram", "Whole requests.", _of(lambda t: t.whole)),
    Row("request_queue_time_seconds", "histogram", "Waiting.", _of(lambda t: t.queued)),
    Row("request_prefill_time_seconds", "histogram", "Prompts.", _of(lambda t: t.prefill)),
    Row("request_decode_time_seconds", "histogram", "Generating.", _of(lambda t: t.decode)),
    Row("request_inference_time_seconds", "histogram", "Both.", _of(lambda t: t.inference)),
    Row("request_prompt_tokens", "histogram", "Tokens of a prompt.", _of(lambda t: t.prompt)),
    Row(
        "request_generation_tokens",
        "histogram",
        "Tokens a request generated.",
        _of(lambda t: t.generated),
    ),
    Row("request_params_n", "histogram", "Outputs asked for.", _of(lambda t: t.n)),
    Row("request_params_max_tokens", "histogram", "max_tokens.", _of(lambda t: t.max_tokens)),
)
"""Counters' names are without the `_total` that they get."""


def metrics(everyone: Everyone, compat: Compat) -> Callable[[Request], Any]:
    """GET /metrics."""

    async def route(request: Request) -> Response:
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

        text = render(await everyone(), compat)
        return Response(text, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    return route


def render(reports: Sequence[Report], compat: Compat) -> bytes:
    """All reports as one text; a series has the number of its process as its engine."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.registry import Collector

    class Families(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from _own(reports)
            for row in ROWS:
                yield from _families(row, reports, compat)

    registry = CollectorRegistry()
    registry.register(Families())
    return generate_latest(registry)


def _families(row: Row, reports: Sequence[Report], compat: Compat) -> Iterator[Metric]:
    """A metric under all its names."""
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    found = [
        ((("model_name", name), ("engine", str(each.engine)), *labels), value)
        for each in reports
        for name, tally in each.tallies.items()
        for labels, value in row.read(tally, each.engines.get(name))
    ]
    if not found:
        return
    labels = [label for label, _ in found[0][0]]
    vllm = [f"vllm:{name}" for name in (row.name, *row.older)] if compat == "vllm" else []
    for name in (f"keifu_{row.name}", *vllm):
        if row.kind == "histogram":
            histogram = HistogramMetricFamily(name, row.help, labels=labels)
            for pairs, value in found:
                assert isinstance(value, Histogram)
                histogram.add_metric([word for _, word in pairs], _buckets(value), value.total)
            yield histogram
            continue
        kind = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
        family = kind(name, row.help, labels=labels)
        for pairs, value in found:
            assert not isinstance(value, Histogram)
            family.add_metric([word for _, word in pairs], value)
        yield family


def _buckets(values: Histogram) -> list[tuple[str, float]]:
    """Bounds with how many values are at most each."""
    total, found = 0, list[tuple[str, float]]()
    for bound, count in zip((*values.bounds, float("inf")), list(values.counts), strict=True):
        total += count
        found.append(("+Inf" if bound == float("inf") else str(float(bound)), total))
    return found


def _own(reports: Sequence[Report]) -> Iterator[Metric]:
    """What has no name at vLLM: refusals, clients that left, replicas, the build."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    from keifu import __version__

    build = GaugeMetricFamily("keifu_build_info", "Always 1.", labels=["version", "python"])
    build.add_metric([__version__, platform.python_version()], 1)
    wanted = max(each.wanted for each in reports)
    yield build
    yield GaugeMetricFamily("keifu_replicas", "Processes that answer.", len(reports))
    yield GaugeMetricFamily("keifu_replicas_wanted", "Processes there should be.", wanted)
    counts: Mapping[str, tuple[str, Callable[[Report], int]]] = {
        "admitted": ("Requests that were let in.", lambda r: r.total),
        "cancelled": ("Requests whose client left or read nothing.", lambda r: r.cancelled),
        "failed": ("Requests answered with an error of ours (500).", lambda r: r.failed),
    }
    for name, (words, read) in counts.items():
        family = CounterMetricFamily(f"keifu_requests_{name}", words, labels=["engine"])
        for each in reports:
            family.add_metric([str(each.engine)], read(each))
        yield family
    labels = ["reason", "engine"]
    refused = CounterMetricFamily("keifu_requests_rejected", "Requests refused.", labels=labels)
    for each in reports:
        for reason, count in {"queue_full": 0, **each.rejected}.items():
            refused.add_metric([reason, str(each.engine)], count)
    yield refused
