"""Compare speculation with the plain loop, on answers that copy from their prompt and on free chat.

    python -m benchmarks.speed.speculation MODEL [MODEL ...] [--pairs 5]

MODEL is what `edgesdk.load` takes: bundles and GGUF files. Both ways run in turns in one process,
greedily, on the same prompts; a pair is one run of each, and its ratio is of the decode speeds in
tokens per second. With "auto" every answer must be the plain loop's, or the run fails. The table
of rows says what can be gained at all: what n tokens in one call cost, in calls for one token, and
whether their logits are those of the calls for one, bit for bit.
"""

from __future__ import annotations

import statistics
from time import perf_counter

import click
import numpy as np

from benchmarks.speed.side_by_side import report
from edgesdk.engines.base import DecodeState, Logits, Rows
from edgesdk.loading import load
from edgesdk.model import Model
from edgesdk.options import Speculation
from edgesdk.reply import Reply

ROWS = (2, 4, 8)
ROW_ROUNDS = 9

FILE = '''class Counter:
    """Counts words."""

    def __init__(self, words):
        self.words = words
        self.counts = {}

    def count(self):
        for word in self.words:
            self.counts[word] = self.counts.get(word, 0) + 1
        return self.counts

    def most_common(self, number):
        ordered = sorted(self.counts.items(), key=lambda item: -item[1])
        return ordered[:number]
'''
TEXT = (
    "The lighthouse at Cape Ann was built in 1771. It has two towers, and both of them are made of"
    " granite. The keeper of the lighthouse climbs 156 steps every evening to light the lamp. Ships"
    " that come from the north see the light 17 miles away. In winter the steps are covered with"
    " ice, and the keeper wears boots with nails."
)
TASKS = {
    "copy": (
        "Write this Python file again, with the class renamed to WordCounter:\n\n"
        f"```python\n{FILE}```",
        f"Quote everything that this text says about the lighthouse, word for word.\n\n{TEXT}",
    ),
    "chat": (
        "Write a short story about a lighthouse keeper.",
        "Explain to a child why the sky is blue.",
    ),
}


def rows_table(model: Model) -> None:
    """Print what several rows cost, and whether they agree with single ones."""
    ids = model.runtime.encoder.chat([{"role": "user", "content": f"{FILE}\n{TEXT}"}])
    held, tail = ids[: -ROWS[-1]], ids[-ROWS[-1] :]
    state = model.runtime.engine.new_state()
    state.extend(held)
    single = [state.extend([token])[0].copy() for token in tail]
    ways: tuple[Rows, ...] = ("each", "all")
    times: dict[tuple[Rows, int], list[float]] = {}
    agree: dict[tuple[Rows, int], bool] = {}
    for _ in range(ROW_ROUNDS):
        alone = _timed(state, len(held), tail[:1], "last")[0]
        for way in ways:
            for count in ROWS:
                seconds, rows = _timed(state, len(held), tail[:count], way)
                times.setdefault((way, count), []).append(seconds / alone)
                agree[way, count] = np.array_equal(rows, single[:count])
    print(f"rows in one call, {model.name}, {len(held)} tokens before them ({model.info.name})\n")
    print(f"{'rows':>6} {'as one by one':>16} {'equal':>6} {'together':>12} {'equal':>6}")
    for count in ROWS:
        cells = [(statistics.median(times[way, count]), agree[way, count]) for way in ways]
        (each, same), (joint, alike) = cells
        print(f"{count:>6} {each:>16.2f} {same!s:>6} {joint:>12.2f} {alike!s:>6}")
    print()
    state.close()


def _timed(state: DecodeState, length: int, tokens: list[int], way: Rows) -> tuple[float, Logits]:
    """Seconds and logits of the second of two calls; the first binds buffers."""
    for _ in range(2):
        state.rewind(length)
        begun = perf_counter()
        rows = state.extend(tokens, logits=way)
        seconds = perf_counter() - begun
    return seconds, rows


def run(model: Model, prompts: tuple[str, ...], tokens: int, way: Speculation) -> list[Reply]:
    """One answer to each prompt."""
    return [model.respond(prompt, max_tokens=tokens, speculate=way) for prompt in prompts]


def speed(replies: list[Reply]) -> float:
    """Tokens per second after the first tokens."""
    steps = sum(len(reply.tokens) - 1 for reply in replies)
    return steps / sum(reply.receipt.decode_seconds for reply in replies)


def compare(model: Model, task: str, way: Speculation, *, pairs: int, tokens: int) -> None:
    """Report one task."""
    prompts = TASKS[task]
    run(model, prompts, tokens, way)
    found = []
    for index in range(pairs):
        first: Speculation = "off" if index % 2 else way
        one = run(model, prompts, tokens, first)
        other = run(model, prompts, tokens, way if first == "off" else "off")
        drafted, plain = (other, one) if first == "off" else (one, other)
        found.append((drafted, plain))
    same = sum(
        mine.tokens == theirs.tokens
        for drafted, plain in found
        for mine, theirs in zip(drafted, plain, strict=True)
    )
    answers = pairs * len(prompts)
    report(
        f"speculation: {task}, {model.name}",
        way,
        "plain",
        [(speed(drafted), speed(plain)) for drafted, plain in found],
        engine=model.info.name,
        tokens=tokens,
        answers=answers,
        same_answers=same,
        drafted=sum(reply.receipt.drafted_tokens for replies, _ in found for reply in replies),
        accepted=sum(reply.receipt.accepted_tokens for replies, _ in found for reply in replies),
    )
    print()
    if way == "auto" and same != answers:
        raise SystemExit(f"{answers - same} of {answers} answers are not the plain loop's")


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--speculate", type=click.Choice(["auto", "lookup"]), default="auto", show_default=True
)
@click.option("--task", "tasks", type=click.Choice(list(TASKS)), multiple=True)
@click.option("--draft", help="A draft model, for auto.")
@click.option("--pairs", default=5, show_default=True)
@click.option("--tokens", default=128, show_default=True, help="Most of one answer.")
@click.option("--threads", default=2, show_default=True)
def main(
    models: tuple[str, ...],
    speculate: Speculation,
    tasks: tuple[str, ...],
    draft: str | None,
    pairs: int,
    tokens: int,
    threads: int,
) -> None:
    """Compare both ways to decode."""
    for name in models:
        with load(name, threads=threads, context=2048, draft=draft) as model:
            rows_table(model)
            for task in tasks or TASKS:
                compare(model, task, speculate, pairs=pairs, tokens=tokens)


if __name__ == "__main__":
    main()
