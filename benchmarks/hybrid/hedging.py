"""Measure what hedged requests bring and cost: first tokens with and without `hedge_after`.

    python -m benchmarks.hybrid.hedging

Two endpoints on loopback begin their replies after delays that are drawn at random; each scenario
says how often each is slow. Requests with and without hedging alternate, so that both see the same
machine. Reported are the 50th and the 95th percentile of the time to the first token, and how many
requests were sent for each reply: an endpoint may charge for every one. The delays are scripted, so
the figures say what hedging does to such a tail, not how long the tail of a real endpoint is.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import click

from edgesdk.hybrid.cloud.client import CloudClient
from edgesdk.hybrid.cloud.cloud_reply import TextDelta
from edgesdk.hybrid.cloud.endpoint import Cloud

BODY = {"messages": [{"role": "user", "content": "Hi"}]}
# Seconds to the first token, from and to.
FAST, SLOW = (0.03, 0.06), (0.4, 0.6)
# Each way's `hedge_after`: a little more than a fast reply takes.
WAYS = {"plain": None, "hedged": 0.1}


@dataclass(frozen=True)
class Scenario:
    """The share of replies that each endpoint, in order of preference, is slow to begin."""

    name: str
    slow: tuple[float, float]


SCENARIOS = (
    Scenario("no endpoint is slow", (0.0, 0.0)),
    Scenario("each is slow for 1 in 10", (0.1, 0.1)),
    Scenario("the first is overloaded", (0.9, 0.1)),
    Scenario("both are overloaded", (0.9, 0.9)),
)


class Endpoint(ThreadingHTTPServer):
    """Answers chat completions, after a while."""

    daemon_threads = True

    def __init__(self, slow: float, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests = 0
        self._slow = slow
        self._random = random.Random(seed)
        self._guard = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def cloud(self) -> Cloud:
        """How a client is told of it."""
        return Cloud(f"http://127.0.0.1:{self.server_port}/v1", "m")

    def begin(self) -> float:
        """Count a request, and return the seconds to wait."""
        with self._guard:
            self.requests += 1
            return self._random.uniform(*(SLOW if self._random.random() < self._slow else FAST))


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Endpoint)
        time.sleep(self.server.begin())
        choices = [{"delta": {"content": "Hello"}}, {"delta": {}, "finish_reason": "stop"}]
        data = [json.dumps({"choices": [choice]}) for choice in choices]
        # A hedge that lost has hung up.
        with contextlib.suppress(OSError):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for event in (*data, "[DONE]"):
                self.wfile.write(f"data: {event}\n\n".encode())

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep the report clean."""


def first_token(client: CloudClient) -> float:
    """Seconds to the first token of one reply."""
    started = time.perf_counter()
    with client.stream(BODY) as stream:
        next(event for event in stream if isinstance(event, TextDelta))
        seconds = time.perf_counter() - started
        for _ in stream:
            pass
    return seconds


def _endpoints(scenario: Scenario, seed: int, opened: contextlib.ExitStack) -> list[Endpoint]:
    found = [Endpoint(slow, seed + index) for index, slow in enumerate(scenario.slow)]
    for endpoint in found:
        opened.callback(endpoint.server_close)
        opened.callback(endpoint.shutdown)
    return found


def measure(scenario: Scenario, replies: int, seed: int) -> Iterator[str]:
    """The lines of one scenario's report."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with contextlib.ExitStack() as opened:
        endpoints = {name: _endpoints(scenario, seed, opened) for name in WAYS}
        clients = {
            name: opened.enter_context(
                CloudClient([endpoint.cloud for endpoint in endpoints[name]], hedge_after=delay)
            )
            for name, delay in WAYS.items()
        }
        for _ in range(replies):
            for name, client in clients.items():
                seconds[name].append(first_token(client))
    requests = {
        name: sum(endpoint.requests for endpoint in pair) for name, pair in endpoints.items()
    }
    yield f"{scenario.name}:"
    for name, found in seconds.items():
        cuts = statistics.quantiles(found, n=20)
        yield (
            f"  {name:<6} first token p50 {cuts[9] * 1000:4.0f} ms, p95 {cuts[18] * 1000:4.0f} ms,"
            f" {requests[name] / replies:.2f} requests a reply"
        )


@click.command()
@click.option("--replies", default=100, show_default=True, help="In each scenario, each way.")
@click.option("--seed", default=1, show_default=True)
def main(replies: int, seed: int) -> None:
    """Report what hedging does in each scenario."""
    for scenario in SCENARIOS:
        for line in measure(scenario, replies, seed):
            click.echo(line)


if __name__ == "__main__":
    main()
