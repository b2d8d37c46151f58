"""Draw a real conversation of `edgesdk chat` on a terminal: `python docs/draw_terminal.py MODEL`.

A pseudo-terminal runs it, pyte says what stands on the screen, and rich draws that as SVG.
"""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

import pexpect
import pyte
from rich.console import Console
from rich.segment import Segment
from rich.style import Style

COLUMNS, ROWS = 92, 32
QUESTIONS = (
    "Write a Python function that doubles a number. Only the code.",
    "/help",
)
PICTURE = Path(__file__).parent / "images" / "terminal.svg"


def main(model: str) -> None:
    """Have the conversation, and write the picture."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.Stream(screen)
    command = [
        "-c", "from edgesdk.cli import main; main()", "chat", model, "--max-tokens", "90",
    ]  # fmt: skip
    colours = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    chat = pexpect.spawn(
        sys.executable,
        command,
        dimensions=(ROWS, COLUMNS),
        env=colours,
        encoding="utf-8",
        timeout=1_200,
    )
    prompt = r"(\x1b\[\?2004h)?> "
    chat.expect(prompt)
    stream.feed(chat.before + chat.after)
    for question in QUESTIONS:
        chat.sendline(question)
        chat.expect(r"\n" + prompt)
        stream.feed(chat.before + chat.after)
    chat.sendeof()
    _draw(screen)


def _draw(screen: pyte.Screen) -> None:
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    last = max(index for index, line in enumerate(screen.display) if line.strip())
    for row in range(last + 1):
        cells = [screen.buffer[row][column] for column in range(COLUMNS)]
        segments = [Segment(cell.data, _style(cell)) for cell in cells]
        console.print(_ScreenRow(segments))
    PICTURE.parent.mkdir(exist_ok=True)
    svg = console.export_svg(title="edgesdk chat")
    # Readers fetch no font from elsewhere.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S)
    PICTURE.write_text(svg, encoding="utf-8")


class _ScreenRow:
    """One line of the screen."""

    def __init__(self, segments: list[Segment]) -> None:
        self._segments = segments

    def __rich_console__(self, console: Console, options: object) -> list[Segment]:
        return [*Segment.simplify(self._segments), Segment.line()]


def _style(cell: pyte.screens.Char) -> Style:
    def colour(name: str) -> str | None:
        if name == "default":
            return None
        if re.fullmatch(r"[0-9a-f]{6}", name):
            return f"#{name}"
        return name.replace("bright", "bright_").replace("brown", "yellow")

    return Style(
        color=colour(cell.fg), bgcolor=colour(cell.bg), bold=cell.bold, italic=cell.italics,
        underline=cell.underscore,
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
