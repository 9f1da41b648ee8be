"""GET /metrics: reports as Prometheus text, under our names and, if wanted, under vLLM's."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
Read = Callable[[Tally, Statistics | None], Found]
"""Takes them out of what the server counts of the model, and of its engine where it has one."""


Row = tuple[str, Read]
"""A metric of a model, by its name without a prefix: what it is, and where its values are."""


def _of(read: Callable[[Tally], Value]) -> Read:
    return lambda tally, engine: [((), read(tally))]


def _in(read: Callable[[Statistics], Value | None]) -> Read:
    def found(tally: Tally, engine: Statistics | None) -> Found:
        value = None if engine is None else read(engine)
        return [] if value is None else [((), value)]

    return found


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


GAUGES: dict[str, Row] = {
    "num_requests_running": ("Requests at work.", _running),
    "num_requests_waiting": ("Requests that wait for a place or for room.", _waiting),
    "kv_cache_usage_perc": ("Share of the state budget in use, 0 to 1.", _in(lambda e: e.used)),
    "cache_config_info": ("How state is kept; always 1.", _cache),
}
COUNTERS: dict[str, Row] = {
    "prompt_tokens": ("Tokens of prompts.", _in(lambda e: e.meter.prompt)),
    "generation_tokens": ("Tokens generated.", _in(lambda e: e.meter.generated)),
    "request_success": ("Outputs that ended, by reason.", _ended),
    "num_preemptions": ("Times that a request gave way.", _in(lambda e: e.meter.preempted)),
    "prefix_cache_queries": ("Prompt tokens looked for.", _in(lambda e: e.meter.sought)),
    "prefix_cache_hits": ("Prompt tokens found read already.", _in(lambda e: e.meter.found)),
    "spec_decode_num_drafts": ("Steps with guesses.", _in(lambda e: e.guesses and e.guesses[0])),
    "spec_decode_num_draft_tokens": ("Guesses.", _in(lambda e: e.guesses and e.guesses[1])),
    "spec_decode_num_accepted_tokens": ("Right ones.", _in(lambda e: e.guesses and e.guesses[2])),
}
"""Names are without the `_total` that they get."""
HISTOGRAMS: dict[str, Row] = {
    "iteration_tokens_total": ("Tokens of a step of the model.", _in(lambda e: e.meter.steps)),
    "time_to_first_token_seconds": ("From arrival to a first token.", _of(lambda t: t.first)),
    "inter_token_latency_seconds": ("From a token to the next.", _in(lambda e: e.meter.gaps)),
    "e2e_request_latency_seconds": ("From arrival to the end.", _of(lambda t: t.whole)),
    "request_queue_time_seconds": ("Waiting.", _of(lambda t: t.queued)),
    "request_prefill_time_seconds": ("Up to a first token.", _of(lambda t: t.prefill)),
    "request_decode_time_seconds": ("From the first token on.", _of(lambda t: t.decode)),
    "request_inference_time_seconds": ("Both of these.", _of(lambda t: t.inference)),
    "request_prompt_tokens": ("Tokens of a prompt.", _of(lambda t: t.prompt)),
    "request_generation_tokens": ("Tokens that a request made.", _of(lambda t: t.generated)),
    "request_max_num_generation_tokens": ("Of its longest output.", _of(lambda t: t.longest)),
    "request_time_per_output_token_seconds": ("Mean of a request.", _of(lambda t: t.pace)),
    "request_params_n": ("Outputs asked for.", _of(lambda t: t.n)),
    "request_params_max_tokens": ("max_tokens, where given.", _of(lambda t: t.max_tokens)),
}
OLDER = {
    "kv_cache_usage_perc": "gpu_cache_usage_perc",
    "prefix_cache_queries": "gpu_prefix_cache_queries",
    "prefix_cache_hits": "gpu_prefix_cache_hits",
    "inter_token_latency_seconds": "time_per_output_token_seconds",
}
"""What vLLM called them once; boards ask for these, too."""


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
            for rows in (GAUGES, COUNTERS, HISTOGRAMS):
                for name, (words, read) in rows.items():
                    if found := _values(read, reports):
                        for full in _names(name, compat):
                            yield _family(full, words, rows, found)

    registry = CollectorRegistry()
    registry.register(Families())
    return generate_latest(registry)


def _values(read: Read, reports: Sequence[Report]) -> Found:
    """A metric's values of all models in all processes."""
    return [
        ((("model_name", name), ("engine", str(each.engine)), *labels), value)
        for each in reports
        for name, tally in each.tallies.items()
        for labels, value in read(tally, each.engines.get(name))
    ]


def _names(name: str, compat: Compat) -> list[str]:
    """All names that a metric goes by."""
    theirs = [name, OLDER[name]] if name in OLDER else [name]
    return [f"keifu_{name}", *(f"vllm:{other}" for other in theirs if compat == "vllm")]


def _family(name: str, words: str, rows: Mapping[str, Row], found: Found) -> Metric:
    from prometheus_client import core

    labels = [label for label, _ in found[0][0]]
    if rows is HISTOGRAMS:
        histogram = core.HistogramMetricFamily(name, words, labels=labels)
        for pairs, value in found:
            assert isinstance(value, Histogram)
            histogram.add_metric([word for _, word in pairs], _buckets(value), value.total)
        return histogram
    kind = core.CounterMetricFamily if rows is COUNTERS else core.GaugeMetricFamily
    family = kind(name, words, labels=labels)
    for pairs, value in found:
        assert not isinstance(value, Histogram)
        family.add_metric([word for _, word in pairs], value)
    return family


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
