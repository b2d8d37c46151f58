"""Compare several chats at once with the same chats one after the other, in turns.

    python -m benchmarks.speed.concurrency MODEL

MODEL is a GGUF, or a bundle. Both runs decode the same number of tokens in the same process, so
the ratio of a pair is what sharing the engine gains. Greedy; a prompt of its own for each chat.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from benchmarks.speed.side_by_side import interleave, report
from edgesdk.loading import load
from edgesdk.model import Model

PROMPTS = (
    "Write a long story about a lighthouse keeper and the sea.",
    "Write a long story about a baker who wants to fly.",
    "Write a long letter from a sailor to his sister.",
    "Write a long report on the trees of a city park.",
)


def one_chat(model: Model, number: int, tokens: int) -> int:
    """Tokens of one answer."""
    with model.chat() as chat:
        reply = chat.respond(PROMPTS[number % len(PROMPTS)], max_tokens=tokens)
    return reply.receipt.output_tokens


def in_turn(model: Model, chats: int, tokens: int) -> float:
    """Tokens per second of all chats, one after the other."""
    started = time.perf_counter()
    done = sum(one_chat(model, number, tokens) for number in range(chats))
    return done / (time.perf_counter() - started)


def at_once(model: Model, chats: int, tokens: int) -> float:
    """Tokens per second of all chats, a thread for each."""
    with ThreadPoolExecutor(chats) as pool:
        started = time.perf_counter()
        answers = [pool.submit(one_chat, model, number, tokens) for number in range(chats)]
        done = sum(answer.result() for answer in answers)
        return done / (time.perf_counter() - started)


@click.command()
@click.argument("path", metavar="MODEL", type=click.Path(exists=True, path_type=Path))
@click.option("--chats", default=4, show_default=True)
@click.option("--tokens", default=48, show_default=True, help="Decoded by each chat.")
@click.option("--pairs", default=5, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(path: Path, chats: int, tokens: int, pairs: int, threads: int) -> None:
    """Compare speeds."""
    with load(path, threads=threads) as model:
        results = interleave(
            lambda: at_once(model, chats, tokens), lambda: in_turn(model, chats, tokens), pairs
        )
    report(
        "concurrency",
        "at once",
        "in turn",
        results,
        model=path.stem,
        chats=chats,
        tokens=tokens,
        threads=threads,
    )


if __name__ == "__main__":
    main()
