"""Counts what `/metrics` shows, in Prometheus' text format. Nothing is global to the process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from edgesdk.receipt import Receipt
from edgesdk.system.resources import double_counted_bytes

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_RATES = (1, 2, 5, 10, 20, 40, 60, 80, 120, 200, 400)


class Metrics:
    """One server's counters and gauges."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        model = ["model"]
        self._requests = counter(
            "edgesdk_requests", "Requests by path and status.", ["path", "status"]
        )
        self._prompt = counter("edgesdk_prompt_tokens", "Tokens of prompts.", model)
        self._cached = counter("edgesdk_cached_tokens", "Those that a KV cache held.", model)
        self._output = counter("edgesdk_output_tokens", "Tokens of answers.", model)
        self._ended = counter("edgesdk_answers", "Answers by how they ended.", ["model", "reason"])
        self._calls = counter("edgesdk_tool_calls", "Calls of tools in answers.", model)
        self._routes = counter(
            "edgesdk_hybrid_answers",
            "Answers that a cloud might have given, by who gave them.",
            ["model", "route"],
        )
        self._money = counter(
            "edgesdk_cloud_cost", "Of cloud answers, in the prices' currency.", model
        )
        self._first = histogram(
            "edgesdk_time_to_first_token_seconds",
            "From the request to its first token.",
            model,
            buckets=_SECONDS,
        )
        self._rate = histogram(
            "edgesdk_tokens_per_second",
            "Of the decode after the first token, by answer.",
            model,
            buckets=_RATES,
        )
        self.gauge("edgesdk_resident_memory_bytes", "Memory of the process.", _resident_memory)

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a value that is read when the metrics are."""
        Gauge(name, help_text, registry=self._registry).set_function(read)

    def count_request(self, path: str, status: int) -> None:
        """Count a request by its path and status."""
        self._requests.labels(path, str(status)).inc()

    def count_failure(self, model: str) -> None:
        """Count an answer that an error ended."""
        self._ended.labels(model, "error").inc()

    def count_answer(self, model: str, receipt: Receipt) -> None:
        """Count an answer of the device."""
        self._ended.labels(model, receipt.finish_reason).inc()
        self._prompt.labels(model).inc(receipt.prompt_tokens)
        self._cached.labels(model).inc(receipt.cached_tokens)
        self._output.labels(model).inc(receipt.output_tokens)
        if receipt.time_to_first_token is not None:
            self._first.labels(model).observe(receipt.time_to_first_token)
        if receipt.tokens_per_second is not None:
            self._rate.labels(model).observe(receipt.tokens_per_second)

    def count_route(self, model: str, route: str, money: float) -> None:
        """Count an answer that a cloud might have given."""
        self._routes.labels(model, route).inc()
        self._money.labels(model).inc(money)

    def count_calls(self, model: str, calls: int) -> None:
        """Count calls of tools in an answer."""
        if calls:
            self._calls.labels(model).inc(calls)

    def text(self) -> bytes:
        """All metrics as text."""
        return generate_latest(self._registry)


def _resident_memory() -> float:
    return float(psutil.Process().memory_info().rss - double_counted_bytes())
