"""What Prometheus reads at /metrics: vLLM's names with our prefix, so that its dashboards fit after one `sed`.

No label comes from a request: paths, models and keys of strangers would make series without end.
"""

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000)

GAUGES = {
    "num_requests_running": ("running", "Answers being written."),
    "num_requests_waiting": ("waiting", "Answers that wait for a place."),
    "kv_cache_held_tokens": ("cache_held", "Tokens that the places of running answers have room for."),
    "prefix_cache_bytes": ("prefix_bytes", "Memory of the begins of prompts that are kept."),
    "mm_cache_bytes": ("visual_bytes", "Memory of the visual tokens that are kept."),
}
COUNTERS = {
    "prefix_cache_queries": ("prefix_queries", "Tokens of prompts that were looked for in the prefix cache."),
    "prefix_cache_hits": ("prefix_hits", "Tokens of prompts that were found there."),
    "mm_cache_queries": ("visual_queries", "Images whose visual tokens were looked for."),
    "mm_cache_hits": ("visual_hits", "Images whose visual tokens were found."),
    "num_preemptions": ("preemptions", "Answers that gave up their place and were computed again."),
}
"""Name -> field of the engine's figures, help."""


class Metrics:
    """One registry; `stats` gives the engine's latest figures, None before there are any."""

    def __init__(self, stats: Callable[[], Any]) -> None:
        self.registry = CollectorRegistry()
        self._stats = stats

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"qwenvl:{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(f"qwenvl:{name}", text, buckets=tuple(buckets), registry=self.registry)

        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts that were answered.")
        self.generation_tokens = counter("generation_tokens", "Tokens written.")
        self.success = counter("request_success", "Answers that came to their end.", "finished_reason")
        self.refused = counter("request_refused", "Requests without an answer, by HTTP status.", "status")
        self.gone = counter("request_client_gone", "Requests whose client went away.")
        self.first_token = histogram(
            "time_to_first_token_seconds", "From the request to its first token.", _SECONDS
        )
        self.between = histogram(
            "inter_token_latency_seconds", "Mean between two tokens of an answer.", _TOKEN_SECONDS
        )
        self.whole = histogram(
            "e2e_request_latency_seconds", "From the request to the end of its answer.", _SECONDS
        )
        self.queue = histogram(
            "request_queue_time_seconds", "From the engine's queue to a place in the engine.", _SECONDS
        )
        self.prefill = histogram(
            "request_prefill_time_seconds", "From the place to the first token.", _SECONDS
        )
        self.decode = histogram("request_decode_time_seconds", "From the first token to the last.", _SECONDS)
        self.inference = histogram(
            "request_inference_time_seconds", "From the place to the last token.", _SECONDS
        )
        self.prepare = histogram(
            "request_prepare_time_seconds", "Images decoded and text tokenised.", _SECONDS
        )
        self.prompt_length = histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.answer_length = histogram("request_generation_tokens", "Tokens of an answer.", _TOKENS)
        self.longest = histogram(
            "request_max_num_generation_tokens", "Tokens of the longest answer of a request.", _TOKENS
        )
        self.unfinished = Gauge(
            "qwenvl:requests_unfinished", "Answers that were admitted.", registry=self.registry
        )
        self.connections = Gauge("qwenvl:connections_open", "Open connections.", registry=self.registry)
        self.draining = Gauge("qwenvl:draining", "1 while the server ends.", registry=self.registry)
        self.registry.register(_Engine(stats))

    def render(self) -> bytes:
        """All of it as text."""
        return generate_latest(self.registry)


class _Engine:
    """The engine's own figures, read when they are asked for."""

    def __init__(self, stats: Callable[[], Any]) -> None:
        self._stats = stats

    def describe(self) -> list[Metric]:
        """Nothing before it is asked."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The figures of this moment."""
        stats = self._stats()
        if stats is None:
            return
        for name, (field, text) in GAUGES.items():
            yield GaugeMetricFamily(f"qwenvl:{name}", text, value=getattr(stats, field))
        share = stats.cache_tokens / stats.cache_capacity if stats.cache_capacity else 0.0
        yield GaugeMetricFamily(
            "qwenvl:kv_cache_usage_perc", "Share of the cache in use, 0 to 1.", value=share
        )
        for name, (field, text) in COUNTERS.items():
            yield CounterMetricFamily(f"qwenvl:{name}", text, value=getattr(stats, field))
