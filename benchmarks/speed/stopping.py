"""Measure how soon an answer ends after its cancel, and what that readiness costs a prompt.

    python -m benchmarks.speed.stopping MODEL...

MODEL is a GGUF, a bundle, or a name in the store. The time is from the cancel
to the end of the stream, when its decode state is free, at random moments of the prefill of a long
prompt and of the decode after a short one. A deadline ends an answer in the same way, so it is not
timed by itself. Prefill with a cancellation token and without one run in turns; their ratio is
the cost.
"""

from __future__ import annotations

import json
import random
import statistics
import threading
import time
from collections.abc import Iterator

import click

from edgesdk.generation.prefill import PREFILL_CHUNK, prefill
from edgesdk.generation.scheduling import ScheduledDecodeState
from edgesdk.loading import load
from edgesdk.model import Model
from edgesdk.reply import ReplyStream
from edgesdk.system.cancellation import CancellationToken

TEXT = "the keeper of a lighthouse wrote to his sister about storms and lost ships again"
WORDS = TEXT.split()


def prompt_of(model: Model, tokens: int, seed: int) -> str:
    """A text of about `tokens` tokens, with a beginning of its own."""
    chooser = random.Random(seed)
    words = [chooser.choice(WORDS) for _ in range(tokens)]
    return " ".join(words[: int(tokens * tokens / model.count(" ".join(words)))])


def stopped_after(stream: ReplyStream, wait: float, *, after_first: bool) -> float | None:
    """Milliseconds from a cancel to the end; None where the answer ended before."""
    reading, first = threading.Event(), threading.Event()
    ended: list[float] = []

    def read() -> None:
        reading.set()
        for _ in stream:
            first.set()
        ended.append(time.perf_counter())
        first.set()

    thread = threading.Thread(target=read)
    thread.start()
    (first if after_first else reading).wait()
    time.sleep(wait)
    cancelled = time.perf_counter()
    stream.cancel()
    thread.join()
    return 1000 * (ended[0] - cancelled) if ended[0] > cancelled else None


def prefill_seconds(model: Model, ids: list[int], *, stoppable: bool) -> float:
    """Of all `ids`, on a sequence of their own."""
    runtime = model.runtime
    state = runtime.engine.new_state()
    begun = time.perf_counter()
    if stoppable:
        scheduled = ScheduledDecodeState(state, runtime.scheduler, 0, CancellationToken(3600))
        prefill(scheduled, ids)
    else:
        prefill(state, ids)
    seconds = time.perf_counter() - begun
    state.close()
    return seconds


def latencies(model: Model, tokens: int, tries: int, longest: float) -> Iterator[tuple[str, float]]:
    """What was stopped, and the milliseconds it took."""
    chooser = random.Random(7)
    for number in range(tries):
        stream = model.stream(prompt_of(model, tokens, number), speculate="off")
        found = stopped_after(stream, chooser.uniform(0, 0.9 * longest), after_first=False)
        if found is not None:
            yield "prefill", found
        stream = model.stream("Tell a long story.", max_tokens=400, speculate="off")
        found = stopped_after(stream, chooser.uniform(0, 1), after_first=True)
        if found is not None:
            yield "decode", found


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--tokens", default=1500, show_default=True, help="Of the long prompt.")
@click.option("--tries", default=9, show_default=True)
@click.option("--pairs", default=2, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(models: tuple[str, ...], tokens: int, tries: int, pairs: int, threads: int) -> None:
    """Measure latencies."""
    for name in models:
        with load(name, threads=threads, context=2 * tokens) as model:
            ids = model.runtime.encoder.plain(prompt_of(model, tokens, -1))
            alone, ready = [], []
            prefill_seconds(model, ids[:PREFILL_CHUNK], stoppable=True)
            for number in range(pairs):
                for stoppable in (True, False) if number % 2 else (False, True):
                    seconds = prefill_seconds(model, ids, stoppable=stoppable)
                    (ready if stoppable else alone).append(seconds)
            found: dict[str, list[float]] = {"prefill": [], "decode": []}
            for what, milliseconds in latencies(model, tokens, tries, min(ready)):
                found[what].append(milliseconds)
            facts = {"model": model.name, "engine": model.info.name, "prompt_tokens": len(ids)}
        ratio = statistics.median(a / r for a, r in zip(alone, ready, strict=True))
        print(f"{facts['model']} on {facts['engine']}, {len(ids):,} tokens")
        print(f"  prefill {min(ready):.2f} s; speed, ready to stop against not: {ratio:.3f}")
        summary = {}
        for what, values in found.items():
            middle, worst = statistics.median(values), max(values)
            print(f"  {what}: stopped in {middle:.1f} ms (median), {worst:.1f} ms (worst)")
            summary[what] = {"median_ms": round(middle, 1), "worst_ms": round(worst, 1)}
        print(json.dumps({"benchmark": "stopping", **facts, "speed_ratio": ratio, **summary}))


if __name__ == "__main__":
    main()
