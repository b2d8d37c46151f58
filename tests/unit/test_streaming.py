"""What one thread makes arrives whole and in order in another, or in an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import pytest
from support.other_process import run_python

from edgesdk.errors import EngineError
from edgesdk.generation.streaming import AsyncChannel, Channel, iterate_async, iterate_in_thread

_HERE = Path(__file__).parent


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


# In a process of its own: an interrupt that comes a moment too late would end the tests.
INTERRUPTED = """
import json, signal, sys, threading, time
from contextlib import closing
from test_streaming import Stream
from edgesdk.generation.streaming import iterate_in_thread
signal.signal(signal.SIGINT, signal.default_int_handler)
stream = Stream()

def press():
    assert stream.busy.wait(30)
    # An interrupt just before the main thread waits would be seen at its next piece only.
    time.sleep(0.2)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

threading.Thread(target=press).start()
ended = "nothing was raised"
try:
    with closing(iterate_in_thread(stream)) as pieces:
        list(pieces)
except KeyboardInterrupt:
    ended = "interrupted"
sys.stdout.write(json.dumps([ended, stream.left.is_set()]))
"""


def test_an_interrupt_ends_the_call_that_is_under_way() -> None:
    ended, left = run_python(f"import sys; sys.path.insert(0, {str(_HERE)!r})\n{INTERRUPTED}")
    assert ended == "interrupted"
    assert left, "nothing computes any more"


def test_leaving_early_cancels() -> None:
    stream: Any = Stream()
    with closing(iterate_in_thread(stream)) as pieces:
        assert next(pieces) == "one"
    assert stream.left.is_set()


def test_pieces_and_errors_come_through() -> None:
    def failing() -> Iterator[str]:
        yield "a"
        raise EngineError("broken")

    broken: Any = Given(failing())
    pieces = iterate_in_thread(broken)
    assert next(pieces) == "a"
    with pytest.raises(EngineError, match="broken"):
        next(pieces)
    whole: Any = Given(iter(["a", "b"]))
    assert list(iterate_in_thread(whole)) == ["a", "b"]


class Given:
    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def cancel(self) -> None:
        pass


def test_a_channel_ends_with_its_error_once() -> None:
    channel: Channel[int] = Channel()
    channel.put(1)
    channel.end(EngineError("broken"))
    assert next(channel) == 1
    assert not channel.ended
    with pytest.raises(EngineError, match="broken"):
        next(channel)
    assert channel.ended
    assert list(channel) == []


def test_items_of_other_threads_arrive_in_the_loop() -> None:
    async def read() -> list[int]:
        channel: AsyncChannel[int] = AsyncChannel()

        def work() -> None:
            for number in range(100):
                channel.put(number)
            channel.end()

        worker = threading.Thread(target=work)
        worker.start()
        read = [number async for number in channel]
        worker.join()
        assert channel.ended
        assert [number async for number in channel] == []
        return read

    assert asyncio.run(read()) == list(range(100))


def test_an_error_of_a_worker_is_raised_in_the_loop() -> None:
    async def read() -> None:
        channel: AsyncChannel[int] = AsyncChannel()
        threading.Thread(target=channel.end, args=(EngineError("broken"),)).start()
        with pytest.raises(EngineError, match="broken"):
            await anext(channel)

    asyncio.run(read())


def test_a_loop_that_was_closed_is_told_of_no_end() -> None:
    async def make() -> AsyncChannel[int]:
        return AsyncChannel()

    channel = asyncio.run(make())
    with pytest.raises(RuntimeError):
        channel.put(1)
    channel.end()


def test_leaving_an_asynchronous_iteration_early_cancels() -> None:
    stream: Any = Stream()

    async def read() -> None:
        async with aclosing(iterate_async(stream)) as pieces:
            assert await anext(pieces) == "one"

    asyncio.run(read())
    assert stream.left.is_set()
