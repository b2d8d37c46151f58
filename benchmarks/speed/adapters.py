"""Measure what adapters cost: the model alone beside them, answers with one, and memory.

    python -m benchmarks.speed.adapters BUNDLE ADAPTER [ADAPTER ...]

The model alone is timed with adapters open beside it and without any, in turns, in one process;
then with an adapter against alone. Adapters that change the same matrices share a session.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from pathlib import Path

import click

from edgesdk.loading import load
from edgesdk.model import Model
from edgesdk.system.resources import private_bytes

PROMPT = "Once upon a time, in a small village by the sea, there lived a lighthouse keeper who"


def decode_seconds(model: Model, tokens: int) -> float:
    """Seconds for each token of an answer after its first."""
    reply = model.complete(PROMPT, max_tokens=tokens, speculate="off", stop_on_repetition=False)
    return reply.receipt.decode_seconds / max(reply.receipt.decode_steps, 1)


def opened(model: Model, adapters: tuple[Path, ...], stack: ExitStack) -> list[Model]:
    """The model with each of the adapters."""
    return [stack.enter_context(model.with_adapter(folder)) for folder in adapters]


def print_ratio(what: str, ratios: list[float]) -> None:
    """A line with the median and the range of ratios."""
    low, high = min(ratios), max(ratios)
    print(f"{what}: {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f}, {len(ratios)} pairs)")


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("adapters", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--tokens", default=48, show_default=True, help="Decoded in each run.")
@click.option("--pairs", default=7, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(bundle: Path, adapters: tuple[Path, ...], tokens: int, pairs: int, threads: int) -> None:
    """Compare speeds and memory."""
    with load(bundle, device="cpu", threads=threads) as model:
        decode_seconds(model, tokens)
        before = private_bytes()
        print(f"{bundle.name}: {before / 1e6:.0f} MB of the process's own memory")
        with ExitStack() as stack:
            for folder in adapters:
                started = time.perf_counter()
                decode_seconds(opened(model, (folder,), stack)[0], tokens)
                after = private_bytes()
                print(
                    f"{folder.name}: {(after - before) / 1e6:+.1f} MB, opened and asked in"
                    f" {time.perf_counter() - started:.2f} s"
                )
                before = after
        beside, active = [], []
        for _ in range(pairs):
            alone = decode_seconds(model, tokens)
            with ExitStack() as stack:
                changed = opened(model, adapters, stack)
                decode_seconds(changed[0], 2)
                beside.append(decode_seconds(model, tokens) / alone)
                active.append(decode_seconds(changed[0], tokens) / decode_seconds(model, tokens))
        print_ratio("seconds a token, alone with adapters open against none open", beside)
        print_ratio("seconds a token, with an adapter against alone", active)


if __name__ == "__main__":
    main()
