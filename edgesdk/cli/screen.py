"""An answer on the screen: Markdown while it streams, and once more when it is whole."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from edgesdk.cli.terminal import printable

_FRAME_SECONDS = 0.1
# Drawing is to take at most this share of the time, so that long answers stay fast.
_DRAWING_SHARE = 0.1


class Tail:
    """The last lines of a Markdown text, as many as the screen holds.

    A live display cannot redraw what has scrolled away, so it never grows past the screen.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(Markdown(self._text), options, pad=False)
        for line in lines[-max(1, console.height - 2) :]:
            yield from line
            yield Segment.line()


def show_answer(console: Console, pieces: Iterable[str]) -> None:
    """Show an answer while it streams.

    On a terminal what streams is a preview that gives way to the whole answer at the end: Markdown
    that was incomplete, such as a table's head, may have been laid out otherwise. Elsewhere the
    plain text is written.
    """
    if not console.is_terminal:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return
    text, next_frame = "", 0.0
    try:
        with Live(
            Text("...", style="dim"), console=console, auto_refresh=False, transient=True
        ) as live:
            for piece in pieces:
                text += printable(piece)
                begun = time.monotonic()
                if begun >= next_frame:
                    live.update(Tail(text), refresh=True)
                    spent = time.monotonic() - begun
                    next_frame = begun + max(_FRAME_SECONDS, spent / _DRAWING_SHARE)
    finally:
        if text:
            console.print(Markdown(text))
