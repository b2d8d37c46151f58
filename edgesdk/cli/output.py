"""Print results to stdout or write them to a new file, and progress and messages to stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from edgesdk.errors import RequestError
from edgesdk.store import StoreEntry
from edgesdk.system.atomic_files import atomic_file


def result_console() -> Console:
    """The console for results. Model names and paths are not markup, nor to be highlighted."""
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        # A table that goes to a file or a program has room for its longest line.
        console.width = 1000
    return console


def message_console() -> Console:
    """The console for progress and remarks."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print one JSON document as the whole result."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def write_new_file(path: Path, parts: Iterable[str]) -> None:
    """Write `parts` one after the other to a new file, which appears whole or not at all.

    Raises:
        RequestError: something stands at `path`, or it cannot be written.
    """
    if path.exists():
        raise RequestError(f"{path} exists already.", hint="Name another file.")
    try:
        with atomic_file(path, private=True) as stream:
            stream.writelines(part.encode() for part in parts)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}.") from None


def entry_fields(entry: StoreEntry) -> dict[str, Any]:
    """An entry as JSON has it."""
    return asdict(entry) | {"path": str(entry.path)}


def format_bytes(count: float) -> str:
    """A number of bytes for people: 98362432 is '98.4 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.95 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


class StoreProgressBar:
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
def store_progress_bar() -> Iterator[StoreProgressBar]:
    """A bar on stderr while the block runs; plain lines where that is not a terminal."""
    console = message_console()
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
        yield StoreProgressBar(bar, console)


# Seconds between two lines.
_SECONDS_BETWEEN_LINES = 10.0


class StageTimer:
    """Estimate how long the rest of a stage takes, from the average of its steps.

    Args:
        steps: of the stage.
        now: seconds, of a clock that only goes forward; so are the other times.
    """

    def __init__(self, steps: int, now: float) -> None:
        self._steps = steps
        self._began = self._reached = now
        self._done: int | None = None
        self.found = 0

    def advance(self, done: int, now: float) -> None:
        """`done` steps of the stage are over. The first call may say with how many it begins: none,
        or those that an earlier process finished (`found` is how many); what came before it is then
        no step's time."""
        if self._done is None and done != 1:
            self.found, self._began = done, now
        self._done, self._reached = done, now

    def spent(self, now: float) -> float:
        """Seconds since the stage, or its first own step, began."""
        return now - self._began

    def left(self, now: float) -> float | None:
        """Seconds; None before the first step is over."""
        if self._done is None or self._done == self.found:
            return None
        each = (self._reached - self._began) / (self._done - self.found)
        return max(0.0, each * (self._steps - self._done) - (now - self._reached))


def format_seconds(seconds: float) -> str:
    """A time for people: 200 is '3 min 20 s'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class StageProgressBar:
    """Draw the stages of an export.

    Args:
        bar: drawn into where the console is a terminal.
        console: gets lines where it is none: one for each stage, and every ten seconds one.
    """

    def __init__(
        self, bar: Bar, console: Console, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._bar = bar
        self._console = console
        self._now = now
        self._title, self._steps = "", 0
        self._clock = StageTimer(0, 0.0)
        self._task: TaskID | None = None
        self._said, self._note = 0.0, ""

    def stage(self, title: str, steps: int) -> None:
        if self._task is not None:
            self._bar.stop_task(self._task)
        self._title, self._steps, self._said, self._note = title, steps, self._now(), ""
        self._clock = StageTimer(steps, self._said)
        self._task = self._bar.add_task(title, total=steps, clock=self._clock, now=self._now)
        self._say(f"({steps} {'step' if steps == 1 else 'steps'})")

    def advance(self, done: int) -> None:
        now, found = self._now(), self._clock.found
        self._clock.advance(done, now)
        if self._task is not None:
            self._bar.update(self._task, completed=done)
        if self._clock.found > found:
            self._say(f"({done} were finished by the run before)")
        elif now - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = now
            left = self._clock.left(now)
            rest = "" if left is None else f", about {format_seconds(left)} left"
            spent = format_seconds(self._clock.spent(now))
            self._say(f"{done}/{self._steps}, {spent}{rest}{self._note}")

    def note(self, text: str) -> None:
        self._note = f", {text}"
        if self._task is not None:
            self._bar.update(self._task, description=self._title + self._note)

    def _say(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(f"{self._title} {text}")


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        left = task.fields["clock"].left(task.fields["now"]())
        return Text("" if left is None or task.finished else f"{format_seconds(left)} left")


@contextmanager
def stage_progress_bar() -> Iterator[StageProgressBar]:
    """Progress on stderr."""
    console = message_console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        _TimeLeft(),
    )
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        yield StageProgressBar(bar, console)
