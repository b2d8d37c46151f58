"""Show an answer on a terminal: safe text, streamed Markdown, and a quiet keyboard."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from edgesdk.reply import ReplyPart

# All control characters but tab and newline: a model's text must not move the cursor, retitle the
# window or paste into the shell.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FRAME_SECONDS = 0.1
# Drawing takes at most this share of the time, so that long answers stay fast.
_DRAWING_SHARE = 0.1


def printable(text: str) -> str:
    """`text` with each control character replaced by U+FFFD."""
    return _CONTROL.sub("\ufffd", text)


@contextmanager
def terminal_without_echo() -> Iterator[None]:
    """Hide typed keys while the block runs, and let Ctrl-C throw no output away.

    A terminal drops what it has not yet shown when Ctrl-C is pressed. Of a display that redraws
    itself this would lose cursor movements, and leave half of the old frame standing. What is
    typed meanwhile stays for whoever reads next.
    """
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    import termios

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = termios.tcgetattr(descriptor)
    local_modes = 3
    quiet[local_modes] = (before[local_modes] & ~termios.ECHO) | termios.NOFLSH
    termios.tcsetattr(descriptor, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class ScreenTail:
    """The last lines of something to show, as many as the screen holds.

    A live display cannot redraw what has scrolled away, so it never grows past the screen.
    """

    def __init__(self, shown: RenderableType) -> None:
        self._shown = shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        lines = console.render_lines(self._shown, options, pad=False)
        for line in lines[-max(1, console.height - 2) :]:
            yield from line
            yield Segment.line()


def show_answer(console: Console, parts: Iterable[ReplyPart]) -> None:
    """Show an answer while it streams, its reasoning dimmed; elsewhere than on a terminal the
    answer alone.

    On a terminal what streams is a preview that gives way to the whole answer at the end: Markdown
    that was incomplete, such as a table's head, may have been laid out otherwise. Elsewhere the
    plain text is written.
    """
    if not console.is_terminal:
        for part in parts:
            if isinstance(part, str):
                sys.stdout.write(part)
                sys.stdout.flush()
        sys.stdout.write("\n")
        return
    from rich.live import Live
    from rich.markdown import Markdown
    from rich.text import Text

    thought, text, next_frame = "", "", 0.0
    try:
        with Live(
            Text("...", style="dim"), console=console, auto_refresh=False, transient=True
        ) as live:
            for part in parts:
                if isinstance(part, str):
                    text += printable(part)
                else:
                    thought += printable(part.text)
                begun = time.monotonic()
                if begun >= next_frame:
                    shown = Markdown(text) if text else Text(thought, style="dim")
                    live.update(ScreenTail(shown), refresh=True)
                    spent = time.monotonic() - begun
                    next_frame = begun + max(_FRAME_SECONDS, spent / _DRAWING_SHARE)
    finally:
        if thought:
            console.print(Text(thought, style="dim"))
        if text:
            console.print(Markdown(text))
