"""Measure what the hybrid client's confidence is worth, on prompts whose answers can be checked.

    python -m benchmarks.hybrid collect MODEL --store FOLDER --prompts 4000
    python -m benchmarks.hybrid collect NAME --endpoint http://127.0.0.1:8080/v1 --store FOLDER
    python -m benchmarks.hybrid report MODEL --store FOLDER --out FOLDER [--cloud NAME-endpoint]

MODEL is what `edgesdk.load` takes, NAME what the endpoint calls it. Answers are collected once and
kept; a run that was stopped goes on where it was. With --tries each prompt gets further answers,
and the report says what their agreement is worth; give them a store of their own. The report needs
no model: it replays policies on the answers. Its cloud is right but for an error rate; with --cloud
it is also another model that was asked the same prompts.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from benchmarks.hybrid.askers import EndpointAsker, LocalAsker
from benchmarks.hybrid.early_stopping import aborted
from benchmarks.hybrid.figures import draw_curves
from benchmarks.hybrid.learning_curves import by_family, learning_curve
from benchmarks.hybrid.outcomes import Asker, Outcome, OutcomeStore, collect, outcomes_in
from benchmarks.hybrid.policies import calibrated_for
from benchmarks.hybrid.prompts import FAMILIES, Prompt, Split, rounds
from benchmarks.hybrid.replays import answered_by, faulty_cloud, promises, routing, select, trust
from benchmarks.hybrid.self_consistency import efforts
from benchmarks.hybrid.tables import (
    data_table,
    early_table,
    effort_table,
    family_table,
    learning_table,
    promise_table,
    routing_table,
    trust_table,
)
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
@click.option("--family", "families", multiple=True, help="Ask these alone.")
@click.option("--level", "levels", multiple=True, type=int, help="Ask these alone; 0 is easiest.")
@click.option("--only-test", is_flag=True, help="Leave out training and calibration.")
@click.option("--plain", is_flag=True, help="Without a chat: the smallest models do better so.")
@click.option("--tries", default=0, show_default=True, help="Further answers to each prompt.")
@click.option("--threads", default=1, show_default=True)
@click.option("--endpoint", help="Ask the model there, in place of loading it.")
def collect_command(
    model: str,
    store: Path,
    prompts: int,
    families: tuple[str, ...],
    levels: tuple[int, ...],
    only_test: bool,
    plain: bool,
    tries: int,
    threads: int,
    endpoint: str | None,
) -> None:
    """Ask a model all prompts that it was not asked yet."""

    def wanted(family: str, level: int, split: Split) -> bool:
        asked = family in (families or (family,)) and level in (levels or (level,))
        return asked and (split == "test" or not only_test)

    some = itertools.islice(rounds(wanted), prompts)
    if endpoint is not None:
        _collect(EndpointAsker(endpoint, model), some, store, f"{model}-endpoint")
        return
    with load(model, threads=threads, context=_CONTEXT) as loaded:
        _collect(LocalAsker(loaded, plain=plain, tries=tries), some, store, loaded.name)


@main.command("report")
@click.argument("model")
@click.option("--store", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--cloud", help="A stronger model in the store.")
@click.option("--cloud-errors", default=0.05, show_default=True, help="Of the one that knows.")
@click.option("--early-after", default=2, show_default=True, help="Tokens, to give up after.")
@click.option("--alpha", default=0.2, show_default=True)
@click.option("--delta", default=0.05, show_default=True)
def report_command(
    model: str,
    store: Path,
    out: Path,
    cloud: str | None,
    cloud_errors: float,
    early_after: int,
    alpha: float,
    delta: float,
) -> None:
    """Replay the policies on what a model answered."""
    out.mkdir(parents=True, exist_ok=True)
    held_out = frozenset(family.name for family in FAMILIES if family.held_out)
    data = select(outcomes_in(store / f"{model}.jsonl"), held_out)
    print(f"# {model}\n\n{data_table(data)}\n\n{trust_table(trust(data))}\n")
    policies = calibrated_for(data.train)
    print(f"{family_table(policies, by_family(data, policies))}\n")
    print(f"{learning_table(policies[-1], learning_curve(data, policies[-1]))}\n")
    print(
        promise_table({name: promises(data, name, alpha=alpha, delta=delta) for name in policies})
    )
    early = aborted(data, early_after)
    if early:
        print(f"\n{early_table(early, early_after)}")
    effort = efforts(data)
    if effort:
        print(f"\n{effort_table(effort)}")
    clouds = [(f"truth, wrong {cloud_errors:.0%}", data, faulty_cloud(data.test, cloud_errors))]
    if cloud is not None:
        clouds.append((cloud, *answered_by(data, outcomes_in(store / f"{cloud}.jsonl"))))
    for name, asked, right in clouds:
        routed, oracle = routing(asked, right)
        print(f"\n{routing_table(name, routed, oracle, len(asked.test))}")
        picture = out / f"{model}-{re.sub('[^a-z0-9.]+', '-', name.lower())}.png"
        draw_curves(picture, f"{model}\ncloud: {name}", routed, oracle)
        print(f"\n{picture}")


def _collect(asker: Asker[Prompt], prompts: Iterable[Prompt], folder: Path, name: str) -> None:
    store = OutcomeStore(folder / f"{name}.jsonl")

    def note(outcome: Outcome) -> None:
        if len(store) % _NOTE_EVERY == 0:
            sys.stderr.write(f"{name}: {len(store)} answers, the last in {outcome.seconds:.2f} s\n")

    collect(asker, prompts, store, note)


if __name__ == "__main__":
    main()
