"""An answer that is read in another thread, so that Ctrl-C is heard while the engine works.

Python handles signals in the main thread, and only between its own instructions: a call of an
engine that computes a long prompt would keep Ctrl-C waiting.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator

from edgesdk.streaming import ReplyStream


def aside(stream: ReplyStream) -> Generator[str, None, None]:
    """The pieces of `stream`. Leaving early cancels it; it may be used again after the end."""
    arrived: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for piece in stream:
                arrived.put(piece)
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    reader = threading.Thread(target=read, daemon=True)
    ended = False
    try:
        # In here, because Ctrl-C may also come before `start` returns.
        reader.start()
        while (item := arrived.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
        ended = True
    finally:
        if not ended:
            stream.cancel()
        if reader.ident is not None:
            reader.join()
