"""Measure what a long history costs in later turns: the time to the first token of the second turn,
and of a turn after a restart, against that of the turn that had to compute the history.

    python -m benchmarks.speed.second_turn MODEL [MODEL ...]

MODEL is what `edgesdk.load` takes. Each round asks about a new text of some 1,500 tokens, asks
again, saves the chat, and restores it in a process that has the model loaded but has never seen
the text; the time to restore counts. What is reported are medians of the rounds' shares.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import click

from benchmarks.speed.side_by_side import Contestant, worker_command
from edgesdk.loading import load
from edgesdk.model import Model
from edgesdk.reply import Reply

AGAIN = "And which of them comes last?"


def history(model: Model, number: int, tokens: int) -> str:
    """A text of about so many tokens that no other round has."""
    lines = [f"Round {number}. Read this list, then name the first of it."]
    while model.count("\n".join(lines)) < tokens:
        lines.append(f"River {len(lines)} of list {number} is {37 * len(lines)} km long.")
    return "\n".join(lines)


def first_token(reply: Reply) -> float:
    """Seconds."""
    found = reply.receipt.time_to_first_token
    assert found is not None, "an answer has a first token"
    return found


def measure(name: str, rounds: int, tokens: int, threads: int, saved: Path) -> None:
    """Report one model."""
    other = Contestant("restored", worker_command("restore", name, threads, saved, AGAIN))
    with load(name, threads=threads, context=4096) as model:
        shares = []
        for number in range(rounds + 1):
            with model.chat() as chat:
                one = chat.respond(history(model, number, tokens), max_tokens=4)
                two = chat.respond(AGAIN, max_tokens=4)
                chat.save(saved)
            whole = first_token(one)
            shares.append((first_token(two) / whole, other.run() / whole))
        engine, prompt = model.info.name, one.receipt.prompt_tokens
    other.close()
    # The first round warms up.
    second, restored = (statistics.median(column) for column in zip(*shares[1:], strict=True))
    print(f"{name} on {engine}: {prompt} tokens of history, {rounds} rounds")
    print(f"  second turn {second:.1%}, restored {restored:.1%} of the first turn's first token")


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--tokens", default=1500, show_default=True, help="Of the history.")
@click.option("--threads", default=2, show_default=True)
def main(models: tuple[str, ...], rounds: int, tokens: int, threads: int) -> None:
    """Measure each model."""
    for name in models:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, rounds, tokens, threads, Path(folder) / "history.chat")


if __name__ == "__main__":
    main()
