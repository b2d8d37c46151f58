"""What the subcommands share: results go to stdout, progress and remarks to stderr.

Neither has colours or moving parts when it is not a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar

from edgesdk.store import Entry


def results() -> Console:
    """The console for results. Model names and paths are not markup, nor to be highlighted."""
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        # A table that goes to a file or a program has room for its longest line.
        console.width = 1000
    return console


def remarks() -> Console:
    """The console for progress and remarks."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print one JSON document as the whole result."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def entry_fields(entry: Entry) -> dict[str, Any]:
    """An entry as JSON has it."""
    return asdict(entry) | {"path": str(entry.path)}


def format_bytes(count: float) -> str:
    """A number of bytes for people: 98362432 is '98.4 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.95 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


class BarProgress:
    """The store's progress as one bar that each stage takes over in turn."""

    def __init__(self, bar: Bar, console: Console) -> None:
        self._bar = bar
        self._console = console
        self._task: TaskID | None = None

    def start(self, stage: str, total: int | None, done: int = 0) -> None:
        """Begin a stage."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        if not self._console.is_terminal:
            size = "" if total is None else f", {format_bytes(total)}"
            kept = f", {format_bytes(done)} of it here from before" if done else ""
            self._console.print(f"{stage}{size}{kept}")
        # The speed is of the bytes that come now, so those from before are no part of it.
        self._task = self._bar.add_task(stage, total=total)
        if done:
            self._bar.update(self._task, completed=done)

    def advance(self, count: int) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bar.advance(self._task, count)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text)


@contextmanager
def progress_bar() -> Iterator[BarProgress]:
    """A bar on stderr while the block runs; plain lines where that is not a terminal."""
    console = remarks()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(
        *columns, console=console, transient=True, disable=not console.is_terminal, expand=True
    ) as bar:
        yield BarProgress(bar, console)
