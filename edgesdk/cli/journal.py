"""`edgesdk journal`: show, sum up and export the decisions of a hybrid client."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from edgesdk.cli.output import print_json, result_console, write_new_file
from edgesdk.cli.terminal import printable
from edgesdk.errors import RequestError
from edgesdk.hybrid.storage.journal import (
    Journal,
    JournalEntry,
    JournalTotals,
    Route,
    totals_of,
    training_set,
)
from edgesdk.hybrid.storage.parquet import write_parquet

_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse_time(value: str) -> float:
    """Parse a time to seconds since the epoch.

    It is "90m", "12h", "7d" or "2w" ago, or a date of ISO 8601 with or without a time, in this
    machine's time zone unless it names one.

    Raises:
        click.BadParameter: it is none of these.
    """
    ago = re.fullmatch(r"(\d{1,6})([mhdw])", value)
    if ago is not None:
        return time.time() - int(ago[1]) * _SECONDS[ago[2]]
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            f"{value!r} is no time; it looks like 12h, 7d or 2026-01-31."
        ) from None


_EPILOG = """\b
Examples:
  edgesdk journal app.journal
  edgesdk journal app.journal --since 7d --totals
  edgesdk journal app.journal --route cloud --last 50 --json | jq -r .reason
  edgesdk journal app.journal --training cloud-answers.jsonl
  edgesdk journal app.journal --parquet device-17.parquet

Prompts and answers are in the journal only if the app chose to keep them. An export or a training
set then holds them unchanged, private values included.
"""
_ROWS = 20
_REASONS = 10


@click.command("journal", epilog=_EPILOG)
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--since", type=parse_time, metavar="WHEN", help="Only entries since then: 12h, 7d, 2026-01-31."
)
@click.option("--route", type=click.Choice(["local", "cloud"]), help="Only answers of this route.")
@click.option("--last", type=click.IntRange(min=1), help="Only this many of the newest entries.")
@click.option("--totals", "only_totals", is_flag=True, help="Show only the sums.")
@click.option(
    "--export", type=click.Path(path_type=Path), help="Write the entries into this file, as JSON."
)
@click.option(
    "--parquet",
    type=click.Path(path_type=Path),
    help="Write the entries into this Parquet file, for DuckDB, Spark or Ray.",
)
@click.option(
    "--training",
    type=click.Path(path_type=Path),
    help="Write the cloud's answers into this file, as chats for training.",
)
@click.option("--json", "as_json", is_flag=True, help="Print each entry as a line of JSON.")
def command(
    path: Path,
    since: float | None,
    route: Route | None,
    last: int | None,
    only_totals: bool,
    export: Path | None,
    parquet: Path | None,
    training: Path | None,
    as_json: bool,
) -> None:
    """Show the decisions in the journal at PATH: who answered each prompt, and why."""
    writes = export or parquet or training
    if only_totals and writes:
        raise click.UsageError(
            "--totals shows sums; --export, --parquet and --training write entries."
        )
    if not path.is_file():
        # Opening it would make one.
        raise RequestError(
            f"There is no journal at {path}.", hint="It is the file that the app's Journal names."
        )
    journal = Journal(path)

    def chosen() -> Iterable[JournalEntry]:
        return journal.entries(since=since or 0.0, route=route, last=last)

    if export is not None:
        _export(export, chosen(), as_json)
    if parquet is not None:
        _say_written(parquet, write_parquet(parquet, chosen()), as_json)
    if training is not None:
        _train(training, chosen(), as_json)
    if writes:
        return
    if only_totals:
        totals = totals_of(chosen())
        if as_json:
            print_json(asdict(totals) | {"local_share": totals.local_share})
        else:
            _print_totals(result_console(), totals)
    elif as_json:
        for line in _lines(chosen()):
            click.echo(line, nl=False)
    else:
        shown = list(journal.entries(since=since or 0.0, route=route, last=last or _ROWS))
        _print_table(result_console(), shown, totals_of(chosen()))


def _lines(entries: Iterable[JournalEntry]) -> Iterable[str]:
    return (json.dumps(entry.to_json(), ensure_ascii=False) + "\n" for entry in entries)


def _export(path: Path, entries: Iterable[JournalEntry], as_json: bool) -> None:
    count = 0

    def counted() -> Iterable[str]:
        nonlocal count
        for line in _lines(entries):
            count += 1
            yield line

    write_new_file(path, counted())
    _say_written(path, count, as_json)


def _train(path: Path, entries: Iterable[JournalEntry], as_json: bool) -> None:
    found = training_set(entries)
    if not found.examples:
        raise RequestError(
            f"There is nothing to learn from: {found.without_text} answers of the cloud are here"
            f" without their text, {found.unfinished} are unfinished.",
            hint="Texts are kept by an app that opens its journal with keep_texts=True.",
        )
    write_new_file(
        path, (json.dumps(example, ensure_ascii=False) + "\n" for example in found.examples)
    )
    _say_written(
        path, len(found.examples), as_json,
        without_text=found.without_text, unfinished=found.unfinished, repeated=found.repeated,
    )  # fmt: skip


def _say_written(path: Path, count: int, as_json: bool, **left_out: int) -> None:
    if as_json:
        click.echo(json.dumps({"path": str(path), "lines": count, **left_out}))
        return
    words = [f"{number} {name.replace('_', ' ')}" for name, number in left_out.items() if number]
    rest = f"; left out: {', '.join(words)}" if words else ""
    result_console().print(f"{path}: {count:,} {'line' if count == 1 else 'lines'}{rest}")


def _print_table(out: Console, entries: list[JournalEntry], totals: JournalTotals) -> None:
    if not entries:
        out.print("No entry is in the journal, or none fits.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("ID", "TIME", "ROUTE", "SURE", "TOKENS", "COST", "SECONDS", "RIGHT", "REASON"):
        right = heading in ("ID", "SURE", "TOKENS", "COST", "SECONDS")
        table.add_column(
            heading, justify="right" if right else "left", overflow="fold",
            no_wrap=heading != "REASON",
        )  # fmt: skip
    for entry in entries:
        table.add_row(*_row(entry))
    out.print(table, soft_wrap=False)
    if len(entries) < totals.entries:
        out.print(f"The newest {len(entries)}; --last shows more.", style="dim")
    out.print()
    _print_totals(out, totals)


def _row(entry: JournalEntry) -> list[str]:
    decision = entry.decision
    where = f" ({decision.endpoint})" if decision.endpoint else ""
    return [
        str(entry.id),
        _time(decision.at),
        decision.route,
        "-" if decision.confidence is None else f"{decision.confidence:.2f}",
        f"{decision.prompt_tokens + decision.output_tokens:,}",
        f"{decision.money:,.6f}" if decision.money else "-",
        f"{decision.seconds:.1f}",
        {None: "-", True: "yes", False: "no"}[entry.right],
        printable(f"{decision.reason}{where}"),
    ]


def _print_totals(out: Console, totals: JournalTotals) -> None:
    share = totals.local_share
    if share is None or totals.first_at is None or totals.last_at is None:
        out.print("No entry is in the journal, or none fits.")
        return
    out.print(
        f"{totals.entries:,} {'entry' if totals.entries == 1 else 'entries'},"
        f" {_time(totals.first_at)} to {_time(totals.last_at)}"
    )
    rows: list[tuple[str, Any]] = [
        ("device", f"{totals.local:,} ({share:.1%})"),
        ("cloud", f"{totals.entries - totals.local:,}, {totals.cloud_tokens:,} tokens"),
        ("cost", f"{totals.money:,.6f}"),
    ]
    if totals.labelled:
        rows.append(("right", f"{totals.right:,} of {totals.labelled:,} with a label"))
    reasons = list(totals.reasons.items())
    rows += [("reason", f"{count:,} {printable(reason)}") for reason, count in reasons[:_REASONS]]
    if len(reasons) > _REASONS:
        rows.append(("", f"and {len(reasons) - _REASONS} more"))
    for name, value in rows:
        out.print(f"  {name:<7} {value}")


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}"
