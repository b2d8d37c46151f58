"""What the hybrid client's trust in a model is worth: prompts whose answers can be checked.

    python benchmarks/hybrid.py collect MODEL --store FOLDER --prompts 4000
    python benchmarks/hybrid.py collect NAME --endpoint http://127.0.0.1:8080/v1 --store FOLDER

MODEL is what `edgesdk.load` takes, NAME what the endpoint calls it. Answers are collected once and
kept; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

import click
from hybrid_asking import EndpointAsker, LocalAsker
from hybrid_outcomes import Asker, Outcome, OutcomeStore, collect
from hybrid_prompts import Prompt, rounds

from edgesdk.loading import load

_NOTE_EVERY = 100
# Examples, question and answer are some 300 tokens.
_CONTEXT = 1024


@click.group()
def main() -> None:
    """Collect answers, then replay policies on them."""


@main.command("collect")
@click.argument("model")
@click.option("--store", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--prompts", default=4000, show_default=True, help="Most that are asked.")
@click.option("--level", "levels", multiple=True, type=int, help="Ask these alone; 0 is easiest.")
@click.option("--only-test", is_flag=True, help="Leave out training and calibration.")
@click.option("--threads", default=1, show_default=True)
@click.option("--endpoint", help="Ask the model there, in place of loading it.")
def collect_command(
    model: str,
    store: Path,
    prompts: int,
    levels: tuple[int, ...],
    only_test: bool,
    threads: int,
    endpoint: str | None,
) -> None:
    """Ask a model all prompts that it was not asked yet."""
    wanted = (
        prompt
        for prompt in rounds()
        if (not levels or prompt.level in levels) and not (only_test and prompt.split != "test")
    )
    some = itertools.islice(wanted, prompts)
    if endpoint is not None:
        _collect(EndpointAsker(endpoint, model), some, store, f"{model}-endpoint")
        return
    with load(model, threads=threads, context=_CONTEXT) as loaded:
        _collect(LocalAsker(loaded), some, store, loaded.name)


def _collect(asker: Asker[Prompt], prompts: Iterable[Prompt], folder: Path, name: str) -> None:
    store = OutcomeStore(folder / f"{name}.jsonl")

    def note(outcome: Outcome) -> None:
        if len(store) % _NOTE_EVERY == 0:
            sys.stderr.write(f"{name}: {len(store)} answers, the last in {outcome.seconds:.2f} s\n")

    collect(asker, prompts, store, note)


if __name__ == "__main__":
    main()
