"""A hybrid answer while it is made."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TypeAlias

from edgesdk.closing import Closes
from edgesdk.errors import RequestError
from edgesdk.hybrid.cloud.answer import Piece, Restart
from edgesdk.hybrid.reply import HybridReply
from edgesdk.scheduling import Cancel

HybridEvent: TypeAlias = Piece | Restart


class HybridStream(Closes, Iterator[HybridEvent]):
    """Pieces of an answer. After a `Restart` all pieces before it are void: another answers.

    Iterate it in one thread; `cancel` may be called from any.

    Args:
        steps: the answer.
        cancel: the event that `steps` looks at.
    """

    def __init__(self, steps: Generator[HybridEvent, None, HybridReply], cancel: Cancel) -> None:
        self._steps = steps
        self._cancel = cancel
        self._reply: HybridReply | None = None

    def __next__(self) -> HybridEvent:
        try:
            return next(self._steps)
        except StopIteration as end:
            self._reply = self._reply or end.value
            raise StopIteration from None

    @property
    def reply(self) -> HybridReply:
        """The whole answer.

        Raises:
            RequestError: it was not read to its end.
        """
        if self._reply is None:
            raise RequestError("The answer was not read to its end.", hint="Iterate it first.")
        return self._reply

    def cancel(self) -> None:
        """End the answer at once, whatever it is at; the stream then ends with what is there."""
        self._cancel.set()

    def close(self) -> None:
        """End the answer here, on the device and in the cloud."""
        self._steps.close()
