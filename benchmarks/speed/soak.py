"""Soak `edgesdk serve` with clients that talk, branch, fill schemas, break off and hang up.

    python -m benchmarks.speed.soak MODEL... --minutes 30

How an answer that belongs to somebody else is found:

- Each request has a code word of its own, drawn at random, and asks for it. An answer with the
  code word of another request is "mixed up"; no model makes one up.
- Some requests have none and are greedy; what each gets when it is asked alone is known before.
  One that gets what another should is "mixed up" too. One that gets neither is "worded anew", which
  is no failure: company and cached tokens change the rounding of a quantized model.

Schemas must hold, unless the tokens run out. Memory is what `/metrics` says: the minute after the
first against the last one. At the end the server is told to stop in the middle of a stream, which
it has to finish.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx
import jsonschema

SUBJECTS = ("rivers", "trees", "planets", "birds")
QUESTIONS = ("Name three {}.", "Why do people like {}?", "Which {} are the largest?")
WAYS = ("known", "code word", "fork", "schema", "broken off", "hung up")
MAX_TOKENS = 20
DISTINCT = 30
SAMPLE_SECONDS = 5.0
LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "pattern": "^[A-Z]{7}$"},
        "kind": {"enum": ["river", "tree", "bird"]},
        "sizes": {"type": "array", "items": {"type": "integer", "maximum": 99}, "maxItems": 2},
    },
    "required": ["code", "kind"],
    "additionalProperties": False,
}

Messages = list[dict[str, Any]]
Key = tuple[str, str, int]


@dataclass
class Seen:
    """What came of the requests so far.

    Attributes:
        counts: by way, and of those that went wrong by what.
        codes: every code word that was ever given to the server.
        wrong: the first few answers that should not be.
    """

    counts: Counter[str] = field(default_factory=Counter)
    codes: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def fail(self, what: str, text: str) -> None:
        self.counts[what] += 1
        if len(self.wrong) < 10:
            self.wrong.append(f"{what}: {text[:300]}")

    def check_codes(self, own: str, text: str) -> None:
        foreign = set(re.findall(f"[{LETTERS}]{{7}}", text)) & self.codes - {own}
        if foreign:
            self.fail("mixed up", f"{own} was asked, {text!r} has {foreign}")
        else:
            self.counts["said its code word" if own in text else "said something else"] += 1


class Busy(Exception):
    """The queue is full: 429 or 503, with the time to stay away."""


def conversation(subject: str, branch: int) -> Messages:
    """A first question, its answer as a user might have edited it, and one of two second ones."""
    first = {"role": "user", "content": QUESTIONS[0].format(subject)}
    answer = {"role": "assistant", "content": f"Here are three {subject}: one, two, three."}
    second = {"role": "user", "content": QUESTIONS[1 + branch].format(subject)}
    return [first, answer, second]


def told(code: str) -> Messages:
    """A conversation that starts with a code word."""
    return [
        {"role": "user", "content": f"The code word is {code}. What is the code word?"},
        {"role": "assistant", "content": f"The code word is {code}."},
        {"role": "user", "content": "Say it again. What is the code word?"},
    ]


def request(model: str, messages: Messages, **more: Any) -> dict[str, Any]:
    fixed = {"temperature": 0, "max_tokens": MAX_TOKENS, "stream": True}
    return {"model": model, "messages": messages, **fixed, **more}


async def ask(
    http: httpx.AsyncClient, body: dict[str, Any], pieces: int | None = None
) -> tuple[str, str | None]:
    """Text and finish reason; the connection is dropped after so many pieces.

    Raises:
        Busy: the queue is full.
        httpx.HTTPError: the server failed, or said so in the stream.
    """
    text, reason = [], None
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code in (429, 503):
            raise Busy(response.headers["Retry-After"])
        if response.status_code != 200:
            said = (await response.aread()).decode()
            raise httpx.HTTPError(f"{response.status_code}: {said}")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise httpx.HTTPError(f"in the stream: {event['error']}")
                for choice in event["choices"]:
                    text.append(choice["delta"].get("content") or "")
                    reason = choice["finish_reason"] or reason
            if pieces is not None and len(text) >= pieces:
                break
    return "".join(text), reason


class Client:
    """One of those that ask, until the time is over."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        models: list[str],
        alone: dict[Key, set[str]],
        seen: Seen,
        chance: random.Random,
    ) -> None:
        self._http = http
        self._models = models
        self._alone = alone
        self._seen = seen
        self._chance = chance

    async def work(self, until: float) -> None:
        while time.monotonic() < until:
            way = self._chance.choice(WAYS)
            try:
                await self._once(way)
                self._seen.counts[way] += 1
            except Busy as busy:
                self._seen.counts["busy"] += 1
                await asyncio.sleep(min(float(str(busy)), 5.0))
            except httpx.HTTPError as error:
                self._seen.fail("failed", f"{way}: {error!r}")

    async def _once(self, way: str) -> None:
        chance, model = self._chance, self._chance.choice(self._models)
        code = "".join(chance.choices(LETTERS, k=7))
        self._seen.codes.add(code)
        if way == "known":
            await self._known(model)
        elif way == "code word":
            self._seen.check_codes(code, (await ask(self._http, request(model, told(code))))[0])
        elif way == "fork":
            beginning = told(code)[:2]
            ends = [f"Say it {how}. What is the code word?" for how in ("again", "loudly", "once")]
            branches = [[*beginning, {"role": "user", "content": end}] for end in ends]
            answers = [ask(self._http, request(model, branch)) for branch in branches]
            for answer in await asyncio.gather(*answers, return_exceptions=True):
                if isinstance(answer, BaseException):
                    raise answer
                self._seen.check_codes(code, answer[0])
        elif way == "schema":
            await self._schema(model, code)
        elif way == "broken off":
            pieces = chance.randrange(1, 8)
            text, _ = await ask(self._http, request(model, told(code)), pieces)
            self._seen.check_codes(code, text)
        else:
            # At any moment: in the queue, during prefill or in the middle of the stream.
            with contextlib.suppress(asyncio.TimeoutError):
                wait = chance.uniform(0.0, 1.0)
                await asyncio.wait_for(ask(self._http, request(model, told(code))), wait)

    async def _known(self, model: str) -> None:
        key = model, self._chance.choice(SUBJECTS), self._chance.randrange(2)
        text, _ = await ask(self._http, request(model, conversation(*key[1:])))
        if text in self._alone[key]:
            self._seen.counts["worded as known"] += 1
        elif len(text) > DISTINCT and any(text in answers for answers in self._alone.values()):
            self._seen.fail("mixed up", f"{key} got {text!r}")
        else:
            self._seen.counts["worded anew"] += 1

    async def _schema(self, model: str, code: str) -> None:
        messages = [*told(code)[:2], {"role": "user", "content": "Answer in JSON, with the code."}]
        schema = {"name": "schema", "schema": SCHEMA, "strict": True}
        asked = {"type": "json_schema", "json_schema": schema}
        body = request(model, messages, response_format=asked, max_tokens=60, temperature=0.7)
        text, reason = await ask(self._http, body)
        if reason == "length":
            self._seen.counts["schema answer cut by max_tokens"] += 1
            return
        try:
            jsonschema.validate(json.loads(text), SCHEMA)
        except (ValueError, jsonschema.ValidationError):
            self._seen.fail("invalid schema answer", text)
        self._seen.check_codes(code, text)


async def watch(http: httpx.AsyncClient, memory: list[tuple[float, float]]) -> None:
    """Sample the server's memory, as (seconds, bytes)."""
    started = time.monotonic()
    while True:
        text = (await http.get("/metrics")).text
        found = re.search(r"^edgesdk_resident_memory_bytes (\S+)", text, re.MULTILINE)
        assert found is not None, "no memory in /metrics"
        memory.append((time.monotonic() - started, float(found[1])))
        await asyncio.sleep(SAMPLE_SECONDS)


async def soak(url: str, minutes: float, clients: int, stop: Any) -> dict[str, Any]:
    """Run the clients, then `stop` the server in the middle of an answer."""
    limits = httpx.Limits(max_connections=4 * clients + 2)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        models = [entry["id"] for entry in (await http.get("/v1/models")).json()["data"]]
        keys = [(model, s, branch) for model in models for s in SUBJECTS for branch in range(2)]
        alone: dict[Key, set[str]] = {key: set() for key in keys}
        # Again at once, and after the others: with much, some and nothing of it in the cache.
        for key in [*keys, *(key for key in keys for _ in range(2)), *keys[::-1]]:
            text, _ = await ask(http, request(key[0], conversation(*key[1:])))
            alone[key].add(text)
        seen, memory = Seen(), []
        watching = asyncio.create_task(watch(http, memory))
        until = time.monotonic() + 60 * minutes
        crowd = [Client(http, models, alone, seen, random.Random(i)) for i in range(clients)]
        await asyncio.gather(*(client.work(until) for client in crowd))
        watching.cancel()
        # What hung up has to be over soon.
        for _ in range(100):
            health = await http.get("/health")
            state = health.json()
            if state["running"] == state["waiting"] == 0:
                break
            await asyncio.sleep(0.1)
        last = asyncio.create_task(
            ask(http, request(models[0], conversation("rivers", 0), max_tokens=60))
        )
        await asyncio.sleep(0.3)
        stop()
        drained = (await last)[1] is not None
    figures = _memory_figures(memory, minutes)
    left = state["running"] + state["waiting"]
    good = not seen.wrong and health.status_code == 200 and drained and left == 0
    return {
        "models": models,
        "minutes": minutes,
        "clients": clients,
        "requests": sum(seen.counts[way] for way in WAYS),
        "counts": dict(sorted(seen.counts.items())),
        "mixed_up": seen.counts["mixed up"],
        "wrong": seen.wrong,
        "healthy": health.status_code == 200,
        "left_running": left,
        "drained": drained,
        **figures,
        "passed": good and figures["memory_ratio"] < 1.05,
    }


def _memory_figures(memory: list[tuple[float, float]], minutes: float) -> dict[str, Any]:
    """Medians of a minute's samples: one moment's depends on how many answers are under way."""
    settled = min(60.0, 60 * minutes / 4)
    end = memory[-1][0]

    def around(mark: float) -> float:
        return statistics.median(size for at, size in memory if mark <= at < mark + 60)

    marks = [settled, *(mark for mark in range(300, int(60 * minutes), 300) if mark < end - 60)]
    by_minute = {f"{mark / 60:.1f}": round(around(mark) / 1e6, 1) for mark in marks}
    last = around(max(end - 59, settled))
    return {
        "memory_mb_by_minute": by_minute | {"end": round(last / 1e6, 1)},
        "memory_ratio": round(last / around(settled), 4),
    }


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--clients", default=8, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(models: tuple[Path, ...], minutes: float, clients: int, threads: int) -> None:
    """Soak a server of MODELS, bundle folders or .gguf files."""
    command = [sys.executable, "-m", "edgesdk", "serve", *(str(m.absolute()) for m in models)]
    command += ["--port", "0", "--threads", str(threads), "--context", "1024"]
    # A store without models, so that these are the only ones.
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"EDGESDK_HOME": home}
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert server.stdout is not None
        url = server.stdout.readline().strip().removesuffix("/v1")

        def stop() -> None:
            server.send_signal(signal.SIGTERM)

        try:
            result = asyncio.run(soak(url, minutes, clients, stop))
        finally:
            stop()
            exit_code = server.wait(60)
    result["passed"] = result["passed"] and exit_code == 0
    print(json.dumps(result | {"exit_code": exit_code}, indent=2))
    sys.exit(not result["passed"])


if __name__ == "__main__":
    main()
