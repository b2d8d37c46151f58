"""Ctrl-C is heard while an engine works."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from edgesdk.cli.terminal import aside
from edgesdk.errors import EngineError


class Stream:
    """Gives a piece, then works until somebody cancels."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.left = threading.Event()
        self.busy = threading.Event()

    def __iter__(self) -> Iterator[str]:
        try:
            yield "one"
            self.busy.set()
            assert self.cancelled.wait(30)
        finally:
            self.left.set()

    def cancel(self) -> None:
        self.cancelled.set()


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C as Python treats it by itself; who starts the tests may have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_an_interrupt_ends_the_call_that_is_under_way() -> None:
    stream: Any = Stream()

    def press() -> None:
        assert stream.busy.wait(30)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(KeyboardInterrupt), closing(aside(stream)) as pieces:
        assert list(pieces) == ["unreachable"]
    pressing.join()
    assert stream.left.is_set(), "nothing computes any more"


def test_leaving_early_cancels() -> None:
    stream: Any = Stream()
    with closing(aside(stream)) as pieces:
        assert next(pieces) == "one"
    assert stream.left.is_set()


def test_pieces_and_errors_come_through() -> None:
    def failing() -> Iterator[str]:
        yield "a"
        raise EngineError("broken")

    broken: Any = Given(failing())
    pieces = aside(broken)
    assert next(pieces) == "a"
    with pytest.raises(EngineError, match="broken"):
        next(pieces)
    whole: Any = Given(iter(["a", "b"]))
    assert list(aside(whole)) == ["a", "b"]


class Given:
    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def cancel(self) -> None:
        pass
