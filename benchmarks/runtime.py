"""Speculation against the plain loop: on answers that copy from their prompt, and on free chat.

    python benchmarks/runtime.py MODEL [MODEL ...] [--speculate lookup] [--pairs 5]

MODEL is what `edgesdk.load` takes. Both ways run in turns in one process, greedily, on the same
prompts; a pair is one run of each, and its ratio is of the decode speeds in tokens per second.
"""

from __future__ import annotations

import click
from turns import report

from edgesdk.decode.options import Speculation
from edgesdk.loading import load
from edgesdk.model import Model
from edgesdk.receipt import Reply

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
        f"Edit this file: rename the class to WordCounter. Write the whole file.\n\n{FILE}",
        f"Quote everything that this text says about the lighthouse, word for word.\n\n{TEXT}",
    ),
    "chat": (
        "Write a short story about a lighthouse keeper.",
        "Explain to a child why the sky is blue.",
    ),
}


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
    report(
        f"speculation: {task}, {model.name}",
        way,
        "plain",
        [(speed(drafted), speed(plain)) for drafted, plain in found],
        engine=model.info.name,
        tokens=tokens,
        answers=pairs * len(prompts),
        same_answers=sum(
            mine.tokens == theirs.tokens
            for drafted, plain in found
            for mine, theirs in zip(drafted, plain, strict=True)
        ),
        drafted=sum(reply.receipt.drafted_tokens for replies, _ in found for reply in replies),
        accepted=sum(reply.receipt.accepted_tokens for replies, _ in found for reply in replies),
    )


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
            for task in tasks or TASKS:
                compare(model, task, speculate, pairs=pairs, tokens=tokens)


if __name__ == "__main__":
    main()
