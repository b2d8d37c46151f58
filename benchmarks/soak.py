"""A soak of `edgesdk serve`: clients that talk, branch, break off and hang up, for a while.

Each answer is greedy and is compared with those that its conversation gets when it is asked
alone. One that starts as another conversation's is "mixed up". One that starts like none is
"worded anew": how much of a prompt is cached changes the rounding of a quantized model, and with
it now and then a word. Memory is what `/metrics` says, sampled every few seconds.

    python benchmarks/soak.py MODEL --minutes 30
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import httpx

SUBJECTS = ("rivers", "colours", "trees", "planets", "metals", "birds", "cities", "numbers")
QUESTIONS = ("Name three {}.", "Why do people like {}?", "Which {} are the largest?")
MAX_TOKENS = 24
DISTINCT = 30
SAMPLE_SECONDS = 5.0


def conversation(subject: str, branch: int) -> list[dict[str, Any]]:
    """A first question, its answer as a user might have edited it, and one of two second ones."""
    first = {"role": "user", "content": QUESTIONS[0].format(subject)}
    answer = {"role": "assistant", "content": f"Here are three {subject}: one, two, three."}
    second = {"role": "user", "content": QUESTIONS[1 + branch].format(subject)}
    return [first, answer, second]


def request(model: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    fixed = {"temperature": 0, "max_tokens": MAX_TOKENS, "stream": True}
    return {"model": model, "messages": messages, **fixed}


async def ask(http: httpx.AsyncClient, body: dict[str, Any], pieces: int | None = None) -> str:
    """The answer; its connection is dropped after so many pieces."""
    text = []
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                text.append(event["choices"][0]["delta"].get("content", ""))
            if pieces is not None and len(text) >= pieces:
                break
    return "".join(text)


async def client(
    http: httpx.AsyncClient,
    model: str,
    alone: dict[tuple[str, int], set[str]],
    seed: int,
    until: float,
    seen: Counter[str],
) -> None:
    chance = random.Random(seed)
    while time.monotonic() < until:
        subject, branch = key = chance.choice(SUBJECTS), chance.randrange(2)
        body = request(model, conversation(subject, branch))
        way = chance.choice(("whole", "broken off", "hung up"))
        if way == "hung up":
            # At any moment: in the queue, during prefill or in the middle of the stream.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(ask(http, body), chance.uniform(0.0, 1.0))
            seen[way] += 1
            continue
        pieces = chance.randrange(1, 8) if way == "broken off" else None
        text = await ask(http, body, pieces)
        owners = {
            owner
            for owner, answers in alone.items()
            if any(answer.startswith(text) if pieces else answer == text for answer in answers)
        }
        # Many answers start with the same few words.
        foreign = owners and len(text) > DISTINCT
        seen[way if key in owners else "mixed up" if foreign else "worded anew"] += 1


async def watch(http: httpx.AsyncClient, memory: list[tuple[float, float]]) -> None:
    started = time.monotonic()
    while True:
        text = (await http.get("/metrics")).text
        found = re.search(r"^edgesdk_resident_memory_bytes (\S+)", text, re.MULTILINE)
        assert found is not None, "no memory in /metrics"
        memory.append((time.monotonic() - started, float(found[1])))
        await asyncio.sleep(SAMPLE_SECONDS)


async def soak(url: str, minutes: float, clients: int) -> dict[str, Any]:
    async with httpx.AsyncClient(
        base_url=url, timeout=600, limits=httpx.Limits(max_connections=clients + 2)
    ) as http:
        model = (await http.get("/v1/models")).json()["data"][0]["id"]
        keys = [(subject, branch) for subject in SUBJECTS for branch in range(2)]
        alone: dict[tuple[str, int], set[str]] = {key: set() for key in keys}
        # Again at once, and after the others: with much, some and nothing of it in the cache.
        for key in [*keys, *(key for key in keys for _ in range(2)), *keys[::-1]]:
            alone[key].add(await ask(http, request(model, conversation(*key))))
        seen: Counter[str] = Counter()
        memory: list[tuple[float, float]] = []
        watching = asyncio.create_task(watch(http, memory))
        until = time.monotonic() + 60 * minutes
        await asyncio.gather(
            *(client(http, model, alone, seed, until, seen) for seed in range(clients))
        )
        watching.cancel()
        # What hung up has to be over soon.
        for _ in range(100):
            state = (await http.get("/health")).json()
            if state["running"] == state["waiting"] == 0:
                break
            await asyncio.sleep(0.1)
    settled = min(60.0, 60 * minutes / 4)
    first = next(size for at, size in memory if at >= settled)
    return {
        "model": model,
        "minutes": minutes,
        "clients": clients,
        "requests": dict(seen),
        "left_running": state["running"] + state["waiting"],
        "memory_after_first_minute_mb": round(first / 1e6, 1),
        "memory_at_end_mb": round(memory[-1][1] / 1e6, 1),
        "memory_ratio": round(memory[-1][1] / first, 4),
    }


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--clients", default=8, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(model: Path, minutes: float, clients: int, threads: int) -> None:
    """Soak a server of MODEL, a bundle folder or a .gguf file."""
    command = [sys.executable, "-m", "edgesdk", "serve", str(model.absolute())]
    command += ["--port", "0", "--threads", str(threads)]
    # A store without models, so that this one is the only one.
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"EDGESDK_HOME": home}
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert server.stdout is not None
        url = server.stdout.readline().strip().removesuffix("/v1")
        try:
            result = asyncio.run(soak(url, minutes, clients))
        finally:
            server.send_signal(signal.SIGTERM)
            exit_code = server.wait(60)
    print(json.dumps(result | {"exit_code": exit_code}, indent=2))


if __name__ == "__main__":
    main()
