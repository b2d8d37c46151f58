"""What the hybrid client's trust in a model is worth: prompts whose answers can be checked.

    python benchmarks/hybrid.py collect MODEL --store FOLDER --prompts 4000
    python benchmarks/hybrid.py collect NAME --endpoint http://127.0.0.1:8080/v1 --store FOLDER

MODEL is what `edgesdk.load` takes, NAME what the endpoint calls it. Answers are collected once and
kept; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import click
from hybrid_asking import Asker, EndpointAsker, LocalAsker, collect
from hybrid_outcomes import Outcome, OutcomeStore
from hybrid_prompts import rounds

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
@click.option("--prompts", default=4000, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--endpoint", help="Ask the model there, in place of loading it.")
def collect_command(
    model: str, store: Path, prompts: int, threads: int, endpoint: str | None
) -> None:
    """Ask a model all prompts that it was not asked yet."""
    if endpoint is not None:
        _collect(EndpointAsker(endpoint, model), store, f"{model}-endpoint", prompts)
        return
    with load(model, threads=threads, context=_CONTEXT) as loaded:
        _collect(LocalAsker(loaded), store, loaded.name, prompts)


def _collect(asker: Asker, folder: Path, name: str, prompts: int) -> None:
    store = OutcomeStore(folder / f"{name}.jsonl")

    def note(outcome: Outcome) -> None:
        if len(store) % _NOTE_EVERY == 0:
            sys.stderr.write(f"{name}: {len(store)} answers, the last in {outcome.seconds:.2f} s\n")

    collect(asker, itertools.islice(rounds(), prompts), store, note)


if __name__ == "__main__":
    main()
