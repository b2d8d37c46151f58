"""An answer of the hybrid client while it is made."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from time import perf_counter
from typing import Generic, Literal, TypeAlias, TypeVar

from edgesdk.errors import RequestError
from edgesdk.generation.streaming import AsyncStream
from edgesdk.hybrid.cloud.cloud_reply import Restart, TextDelta
from edgesdk.hybrid.reply import HybridReply, LocalDraft, Timing
from edgesdk.receipt import peak_memory_bytes
from edgesdk.reply import ReasoningDelta
from edgesdk.system.cancellation import CancellationToken
from edgesdk.system.closing import Closeable

HybridEvent: TypeAlias = TextDelta | ReasoningDelta | Restart
_Step = TypeVar("_Step", covariant=True)
_Result = TypeVar("_Result", covariant=True)
_Route: TypeAlias = Literal["local", "cloud"]
AnswerSteps: TypeAlias = Generator[HybridEvent, None, HybridReply]


class Steps(Closeable, Generic[_Step, _Result]):
    """Iterates a generator; `result` is then what it returned."""

    result: _Result

    def __init__(self, generator: Generator[_Step, None, _Result]) -> None:
        self._generator = generator

    def __iter__(self) -> Iterator[_Step]:
        self.result = yield from self._generator

    def close(self) -> None:
        """End the generator where it is."""
        self._generator.close()


def read_to_end(generator: Generator[object, None, _Result]) -> _Result:
    """Run a generator to its end, drop what it yields, and return its value."""
    with Steps(generator) as steps:
        for _ in steps:
            pass
        return steps.result


class Screen:
    """Follows what the reader of a stream has on the screen, to replace it by a better answer.

    Args:
        draft: what the device said so far; None for nothing.
        append_only: nothing can be withdrawn, so reasoning and blanks stay before another answer.

    Attributes:
        text: all of it since the last `Restart`.
        route: who said that; None before the first piece.
    """

    def __init__(self, draft: LocalDraft | None, *, append_only: bool) -> None:
        self.text = "" if draft is None else draft.text
        self._reasoned = draft is not None and bool(draft.reasoning)
        self.route: _Route | None = "local" if self.text or self._reasoned else None
        self._append_only = append_only

    def replace_by(
        self, answering: Generator[HybridEvent, None, _Result], reason: str
    ) -> Generator[HybridEvent, None, _Result]:
        """Yield the pieces of another answer, and return its value; with the first of them what is
        there is withdrawn."""
        replaced = False
        with Steps(answering) as steps:
            for event in steps:
                if not replaced:
                    yield from self._clear(reason)
                    replaced = True
                if isinstance(event, Restart):
                    self.text, self._reasoned = "", False
                elif isinstance(event, TextDelta):
                    self.text, self.route = self.text + event.text, event.route
                else:
                    self.route, self._reasoned = event.route, True
                yield event
            return steps.result

    def show(self, text: str, route: _Route, reason: str) -> Iterator[HybridEvent]:
        """Yield what it takes until there is `text`, said by `route`, and nothing else."""
        if (self.text, self.route) != (text, route):
            yield from self._clear(reason)
            if text:
                yield TextDelta(text, route)

    def _clear(self, reason: str) -> Iterator[HybridEvent]:
        stays = self._append_only and self.route == "cloud" and not self.text.strip()
        if (self.text or self._reasoned) and not stays:
            yield Restart(reason)
        self.text, self._reasoned = "", False


class HybridStream(Closeable, Iterator[HybridEvent]):
    """The pieces of an answer. After a `Restart`, all pieces before it are void.

    A `ReasoningDelta` is what the model reasons, and no part of the answer. Iterate it in
    one thread; `cancel` may be called from any.

    Args:
        on_end: called once, with the reply, or with None where there is none or it was cancelled.
    """

    def __init__(
        self,
        steps: AnswerSteps,
        cancellation: CancellationToken,
        on_end: Callable[[HybridReply | None], None],
    ) -> None:
        self._steps = steps
        self._cancellation = cancellation
        self._on_end = on_end
        self._ended = False
        self._started = perf_counter()
        self._first: float | None = None
        self._reply: HybridReply | None = None

    def __next__(self) -> HybridEvent:
        try:
            event = next(self._steps)
        except StopIteration as end:
            if end.value is not None:
                self._reply = replace(end.value, timing=self._timing())
            self._end()
            raise StopIteration from None
        except BaseException:
            self._end()
            raise
        if isinstance(event, Restart):
            self._first = None
        elif isinstance(event, TextDelta) and self._first is None:
            self._first = perf_counter() - self._started
        return event

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
        """End the answer at once; the stream then ends with what is there."""
        self._cancellation.cancel()

    def close(self) -> None:
        """End the answer here; for the thread that iterates it."""
        self._steps.close()
        self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._on_end(None if self._cancellation.cancelled else self._reply)

    def __del__(self) -> None:
        self.close()

    def _timing(self) -> Timing:
        return Timing(perf_counter() - self._started, self._first, peak_memory_bytes())


AsyncHybridStream: TypeAlias = AsyncStream[HybridEvent, HybridReply]
