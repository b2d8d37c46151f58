"""Measure how long the window of the desktop chat does not answer while it is busy.

    QT_QPA_PLATFORM=offscreen python -m benchmarks.desktop.ui_stalls smollm2-135m-instruct

Two figures for each thing that is done:

- the longest single event: wall time, and the CPU time of the UI thread in it. CPU time does not
  depend on what else the machine does, so it says what the window itself is to blame for.
- the longest time between two ticks of a timer of 5 ms on the UI thread: what a person would feel.

The goal is 50 ms for both.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from edgesdk_desktop import protocol
from edgesdk_desktop.conversations import ConversationStore
from edgesdk_desktop.engine_client import EngineClient
from edgesdk_desktop.main_window import MainWindow
from PySide6.QtCore import QEvent, QEventLoop, QObject, QTimer
from PySide6.QtWidgets import QApplication

_TICK_MS = 5
_LONGEST_WAIT = 300.0
_CODE = "```python\n" + "def add(a: int, b: int) -> int:\n    return a + b\n\n" * 4 + "```"
_TABLE = "| fruit | colour | price |\n|---|---|---|\n" + "| 苹果 🍎 | red | 1.20 |\n" * 6
_PROSE = "A paragraph with **bold** words, `code`, and 你好 🎉 in it. " * 5
_SECTION = f"## A heading\n\n{_PROSE}\n\n{_CODE}\n\n- one\n- two\n- three\n\n{_TABLE}\n"

_LONG_CODE = "```python\n" + "def add(a: int, b: int) -> int:\n    return a + b\n\n" * 200 + "```"
_LONG_LIST = "".join(f"{n}. A point with **bold** words and 你好.\n" for n in range(1, 250))


@dataclass(frozen=True)
class Stall:
    """What took longest on the UI thread while one thing was done, in milliseconds.

    Attributes:
        event: what the longest event was and to whom it went.
    """

    event: str
    event_wall: float
    event_cpu: float
    tick: float


class TimedApplication(QApplication):
    """An application that measures each event, with all that its handlers do."""

    def __init__(self) -> None:
        super().__init__(sys.argv[:1])
        self._depth = 0
        self.begin()

    def begin(self) -> None:
        """Forget what was measured."""
        self._longest = ("", 0.0)
        self.cpu = 0.0

    @property
    def longest(self) -> tuple[str, float]:
        """The event with the longest wall time, and that time in seconds."""
        return self._longest

    def notify(self, receiver: QObject, event: QEvent) -> bool:
        """Handle an event, and measure it unless it is part of another one."""
        if self._depth:
            return super().notify(receiver, event)
        self._depth += 1
        name = f"{event.type().name} of {type(receiver).__name__}"
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return super().notify(receiver, event)
        finally:
            self._depth -= 1
            wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
            self.cpu = max(self.cpu, cpu)
            if wall > self._longest[1]:
                self._longest = (name, wall)


class Stalls:
    """Measures what is done in a window."""

    def __init__(self, app: TimedApplication) -> None:
        self._app = app
        self._timer = QTimer()
        self._timer.setInterval(_TICK_MS)
        self._timer.timeout.connect(self._tick)
        self._last = self._gap = 0.0
        self.found: dict[str, Stall] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Measure what is done meanwhile."""
        self._app.begin()
        self._last, self._gap = time.perf_counter(), 0.0
        self._timer.start()
        yield
        self._settle()
        self._timer.stop()
        event, wall = self._app.longest
        stall = Stall(event, 1e3 * wall, 1e3 * self._app.cpu, 1e3 * self._gap)
        self.found[name] = stall
        click.echo(
            f"{name:28} event {stall.event_wall:6.0f} ms (CPU {stall.event_cpu:5.0f} ms)"
            f"  tick {stall.tick:6.0f} ms  {event}"
        )

    def do(self, handler: Callable[[], object]) -> None:
        """Do something as an event of its own, and what comes of it at once."""
        done: list[bool] = []

        def handle() -> None:
            handler()
            done.append(True)

        QTimer.singleShot(0, self._timer, handle)
        self.until(lambda: bool(done))
        self._settle()

    def until(self, true: Callable[[], bool]) -> None:
        """Handle events until something is true."""
        end = time.monotonic() + _LONGEST_WAIT
        while not true():
            if time.monotonic() > end:
                raise click.ClickException("The window did not do what it was waited for.")
            QApplication.processEvents(QEventLoop.ProcessEventsFlag.WaitForMoreEvents, 20)

    def _settle(self) -> None:
        end = time.monotonic() + 0.5
        self.until(lambda: time.monotonic() > end)

    def _tick(self) -> None:
        now = time.perf_counter()
        self._gap, self._last = max(self._gap, now - self._last), now


def fill(folder: Path, turns: int) -> tuple[str, str]:
    """Write a conversation of one turn, and one of so many with code and tables; their ids."""
    store = ConversationStore(folder / "conversations.db")
    ids = []
    for number in (turns, 1):
        conversation, parent = store.create(), None
        for turn in range(number):
            asked = store.add(conversation.id, parent, "user", f"Question {turn}?", "complete")
            answer = store.add(conversation.id, asked.id, "assistant", _SECTION, "complete")
            parent = answer.id
        ids.append(conversation.id)
    store.close()
    return ids[1], ids[0]


class SilentEngine(EngineClient):
    """An engine that never answers: what it would say is emitted by hand."""

    def send(self, request: protocol.Request) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def measure_window(stalls: Stalls, folder: Path, turns: int) -> None:
    """Measure the window alone, with answers that are longer than a small model's."""
    short, long = fill(folder, turns)
    engine = SilentEngine()
    window = MainWindow(folder, engine)
    window.show()
    view = window.parts.view
    with stalls.of("open a short conversation"):
        stalls.do(lambda: window.open(short))
    for name, text in (("sections", _SECTION * 12), ("code", _LONG_CODE), ("a list", _LONG_LIST)):
        with stalls.of(f"2,000 pieces: {name}"):
            stalls.do(lambda: window.open(None))
            stalls.do(lambda: window.send("Go on."))
            answer = view.message_views()[-1].message.id
            step = len(text) // 2000 + 1
            for at in range(0, len(text), step):
                piece = protocol.AnswerPiece(answer, text[at : at + step])
                QTimer.singleShot(0, window, lambda piece=piece: engine.event_came.emit(piece))
                QApplication.processEvents()
                time.sleep(0.002)
            ended = protocol.Answered(answer, text, "complete", {"route": "local"})
            stalls.do(lambda ended=ended: engine.event_came.emit(ended))
    with stalls.of("open a long conversation"):
        stalls.do(lambda: window.open(long))
    with stalls.of("scroll it to its start"):
        stalls.do(lambda: view.verticalScrollBar().setValue(0))
    with stalls.of("switch the theme"):
        stalls.do(window.toggle_theme)
    with stalls.of("search all conversations"):
        stalls.do(lambda: window.parts.sidebar.search.setText("no such words"))
        stalls.do(lambda: window.parts.sidebar.search.setText(""))
    with stalls.of("ask in a long conversation"):
        stalls.do(lambda: window.send("Go on."))
    window.close()


def measure_engine(stalls: Stalls, folder: Path, model: str, max_tokens: int) -> None:
    """Measure the window while the real engine is busy."""
    engine = EngineClient()
    engine.start()
    window = MainWindow(folder, engine, max_tokens=max_tokens)
    window.show()
    composer = window.parts.composer
    with stalls.of("load a model"):
        stalls.do(lambda: window.load(model))
        composer.field.setPlainText("Tell me a long story about a dragon.")
        stalls.until(composer.send.isEnabled)
    with stalls.of("generate a long answer"):
        stalls.do(lambda: window.send(composer.message))
        stalls.until(lambda: composer.send.text() == "Send")
    window.close()


@click.command()
@click.argument("model")
@click.option("--turns", default=500, show_default=True, help="Of the long conversation.")
@click.option("--max-tokens", default=600, show_default=True, help="Of the model's answer.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures.")
def main(model: str, turns: int, max_tokens: int, json_file: Path | None) -> None:
    """Measure the longest stalls of the window with MODEL."""
    app = TimedApplication()
    app.setStyle("Fusion")
    stalls = Stalls(app)
    with tempfile.TemporaryDirectory() as folder:
        measure_window(stalls, Path(folder) / "window", turns)
        measure_engine(stalls, Path(folder) / "engine", model, max_tokens)
    if json_file is not None:
        json_file.write_text(json.dumps({k: vars(v) for k, v in stalls.found.items()}, indent=2))


if __name__ == "__main__":
    main()
