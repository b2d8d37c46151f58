"""How long jobs show where they are: a bar for each stage, plain lines where no terminal is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from edgesdk.cli.output import remarks


class StageBars:
    """Follows one stage after another."""

    def __init__(self, bar: Bar, console: Console) -> None:
        self._bar = bar
        self._console = console
        self._task: TaskID | None = None

    def stage(self, title: str, steps: int) -> None:
        """A new stage of `steps` steps begins; the one before it is over."""
        self._finish()
        if not self._console.is_terminal:
            self._console.print(f"{title} ({steps} steps)")
        self._task = self._bar.add_task(title, total=steps)

    def advance(self, done: int) -> None:
        """`done` steps of the stage are over."""
        if self._task is not None:
            self._bar.update(self._task, completed=done)

    def _finish(self) -> None:
        if self._task is not None:
            self._bar.stop_task(self._task)


@contextmanager
def drawn_stages() -> Iterator[StageBars]:
    """Bars on stderr while the block runs."""
    console = remarks()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        yield StageBars(bar, console)
