"""Iterates a stream in a worker thread, so that an event loop stays free."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from typing_extensions import Self

_Item = TypeVar("_Item")
_Reply = TypeVar("_Reply")
_Given = TypeVar("_Given", covariant=True)
_Told = TypeVar("_Told", covariant=True)


class CancellableIterable(Protocol[_Given]):
    """What a worker thread iterates, and another thread may end."""

    def __iter__(self) -> Iterator[_Given]: ...

    def cancel(self) -> None:
        """End it at once."""


class AnswerStream(CancellableIterable[_Given], Protocol[_Given, _Told]):
    """Pieces of an answer, and at their end the reply."""

    @property
    def reply(self) -> _Told:
        """The whole answer."""

    def close(self) -> None:
        """End it here; harmless where it has ended."""


class AsyncStream(AsyncIterator[_Item], Generic[_Item, _Reply]):
    """A stream for asyncio.

    When the task that iterates it is cancelled, the answer ends at once. Use it in `async with`,
    or call `aclose`, if it may not be read to its end.
    """

    def __init__(self, stream: AnswerStream[_Item, _Reply]) -> None:
        self._stream = stream
        self._items = relay(stream)

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


class _End:
    """Comes after the last item."""


async def relay(stream: CancellableIterable[_Item]) -> AsyncGenerator[_Item, None]:
    """What a stream gives, for an event loop. Leaving it early cancels the stream."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[_Item | _End] = asyncio.Queue()
    ended: asyncio.Future[BaseException | None] = loop.create_future()

    def end(error: BaseException | None) -> None:
        ended.set_result(error)
        arrived.put_nowait(_End())

    def work() -> None:
        error = None
        try:
            for piece in stream:
                loop.call_soon_threadsafe(arrived.put_nowait, piece)
        except BaseException as raised:
            error = raised
        # A loop that was closed under way has nobody who could be told.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(end, error)

    # A thread of its own: in a pool, answers would wait for a free thread, by no priority, and
    # with no way to stop.
    threading.Thread(target=work, name="edgesdk-answer", daemon=True).start()
    try:
        while not isinstance(piece := await arrived.get(), _End):
            yield piece
    finally:
        # The sequence is in use until the worker has seen the wish to stop.
        if not ended.done():
            stream.cancel()
            await asyncio.wait([ended])
    error = ended.result()
    if error is not None:
        raise error
