"""Carries what one thread makes to another thread, or to an event loop.

All answers that a worker thread computes are read through this module: streams for asyncio, the
command line's (which hears Ctrl-C meanwhile), the cloud client's and the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from typing_extensions import Self

_Item = TypeVar("_Item")
_Reply = TypeVar("_Reply")
_Item_co = TypeVar("_Item_co", covariant=True)
_Reply_co = TypeVar("_Reply_co", covariant=True)
_Item_contra = TypeVar("_Item_contra", contravariant=True)


class CancellableIterable(Protocol[_Item_co]):
    """Something that one thread iterates, and another may end."""

    def __iter__(self) -> Iterator[_Item_co]: ...

    def cancel(self) -> None:
        """End it at once."""


class AnswerStream(CancellableIterable[_Item_co], Protocol[_Item_co, _Reply_co]):
    """Pieces of an answer, and at their end the reply."""

    @property
    def reply(self) -> _Reply_co:
        """The whole answer."""

    def close(self) -> None:
        """End it here; harmless where it has ended."""


class Channel(Iterator[_Item]):
    """Carries items, in order, from any thread to the one that iterates it."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[_Item | _End] = queue.SimpleQueue()
        self.ended = False

    def put(self, item: _Item) -> None:
        """Add an item."""
        self._items.put(item)

    def end(self, error: BaseException | None = None) -> None:
        """Add the end, which raises `error` if there is one."""
        self._items.put(_End(error))

    def __next__(self) -> _Item:
        item = self._items.get()
        if isinstance(item, _End):
            self.ended = True
            # Whoever asks again gets the same end.
            self._items.put(_End(None))
            item.reach()
            raise StopIteration
        return item


class AsyncChannel(AsyncIterator[_Item]):
    """Carries items, in order, from any thread to the event loop in which it was made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[_Item | _End] = asyncio.Queue()
        self._ended = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether the end has arrived, though it may not have been read."""
        return self._ended.is_set()

    def put(self, item: _Item) -> None:
        """Add an item.

        Raises:
            RuntimeError: the loop was closed.
        """
        self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    def end(self, error: BaseException | None = None) -> None:
        """Add the end, which raises `error` if there is one."""
        # A loop that was closed under way has nobody who could be told.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end, error)

    async def wait_ended(self) -> None:
        """Wait until the end has arrived."""
        await self._ended.wait()

    async def __anext__(self) -> _Item:
        item = await self._items.get()
        if isinstance(item, _End):
            self._items.put_nowait(_End(None))
            item.reach()
            raise StopAsyncIteration
        return item

    def _end(self, error: BaseException | None) -> None:
        self._ended.set()
        self._items.put_nowait(_End(error))


def iterate_in_thread(stream: CancellableIterable[_Item]) -> Generator[_Item, None, None]:
    """The items of `stream`, which another thread reads, so that this one hears Ctrl-C.

    Python handles signals in the main thread, and only between its own instructions: a call of an
    engine that computes a long prompt would keep Ctrl-C waiting. Leaving early cancels the stream;
    it may be used again after the end.
    """
    channel: Channel[_Item] = Channel()
    reader = threading.Thread(target=_copy, args=(stream, channel), daemon=True)
    try:
        # In here, because Ctrl-C may also come before `start` returns.
        reader.start()
        yield from channel
    finally:
        if not channel.ended:
            stream.cancel()
        if reader.ident is not None:
            reader.join()


async def iterate_async(stream: CancellableIterable[_Item]) -> AsyncGenerator[_Item, None]:
    """The items of `stream`, which a worker thread reads. Leaving early cancels the stream."""
    channel: AsyncChannel[_Item] = AsyncChannel()
    # A thread of its own: in a pool, answers would wait for a free thread, by no priority, and
    # with no way to stop.
    threading.Thread(
        target=_copy, args=(stream, channel), name="edgesdk-answer", daemon=True
    ).start()
    try:
        async for item in channel:
            yield item
    finally:
        # The decode state is in use until the worker has seen the wish to stop.
        if not channel.ended:
            stream.cancel()
            await channel.wait_ended()


class AsyncStream(AsyncIterator[_Item], Generic[_Item, _Reply]):
    """A stream for asyncio.

    When the task that iterates it is cancelled, the answer ends at once. Use it in `async with`,
    or call `aclose`, if it may not be read to its end.
    """

    def __init__(self, stream: AnswerStream[_Item, _Reply]) -> None:
        self._stream = stream
        self._items = iterate_async(stream)

    async def __anext__(self) -> _Item:
        return await self._items.__anext__()

    @property
    def reply(self) -> _Reply:
        """The whole answer.

        Raises:
            RequestError: it was not read to its end.
        """
        return self._stream.reply

    def cancel(self) -> None:
        """End the answer at once, whatever it is at; the stream then ends with what is there."""
        self._stream.cancel()

    async def aclose(self) -> None:
        """End the answer here; harmless where it has ended."""
        await self._items.aclose()
        self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


def read_all(stream: AnswerStream[_Item, _Reply]) -> _Reply:
    """The reply at the end of a stream."""
    try:
        for _ in stream:
            pass
    finally:
        stream.close()
    return stream.reply


async def read_all_async(stream: AsyncStream[_Item, _Reply]) -> _Reply:
    """The reply at the end of a stream."""
    async with stream:
        async for _ in stream:
            pass
    return stream.reply


class _Sink(Protocol[_Item_contra]):
    def put(self, item: _Item_contra) -> None: ...

    def end(self, error: BaseException | None = None) -> None: ...


class _End:
    """Comes after the last item."""

    def __init__(self, error: BaseException | None) -> None:
        self._error = error

    def reach(self) -> None:
        if self._error is not None:
            raise self._error


def _copy(stream: CancellableIterable[_Item], sink: _Sink[_Item]) -> None:
    error = None
    try:
        for item in stream:
            sink.put(item)
    except BaseException as raised:
        error = raised
    sink.end(error)
