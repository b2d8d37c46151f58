"""An answer: pieces of text while it is made, then the reply."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from edgesdk.errors import DeadlineExceeded, RequestError
from edgesdk.generation.finish import Finish, FinishReason
from edgesdk.generation.loop import Step
from edgesdk.generation.streaming import AsyncStream
from edgesdk.receipt import Receipt
from edgesdk.system.cancellation import CancellationToken
from edgesdk.system.closing import Closeable
from edgesdk.tools.call_messages import call_message
from edgesdk.tools.calls import ToolCall, ToolCalls


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        text: all of it; where it calls tools, the calls as the model wrote them.
        finish_reason: why it ended; also on the receipt. "tool_calls" where it ended by itself
            and waits for the results of `tool_calls`.
        tokens: its ids, the end token left out.
        parsed: the value, where the request set an output format: an instance of the schema's
            type, a JSON value, or the text. None without a format, and of a cancelled answer.
        tool_calls: the calls of tools that were offered. Arguments fit the tool, unless `problem`
            says otherwise.
    """

    text: str
    finish_reason: FinishReason | Literal["tool_calls"]
    receipt: Receipt
    tokens: tuple[int, ...]
    parsed: Any = None
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message of the conversation, in the form of OpenAI's API."""
        calls = self.tool_calls
        words = calls.words if isinstance(calls, ToolCalls) and calls else self.text
        return call_message(words, self.tool_calls)


class StepSource(Protocol):
    """Steps of an answer, as `edgesdk.generation.loop.Generation` gives them."""

    @property
    def finish(self) -> Finish | None:
        """How it ended; None before that."""

    def __iter__(self) -> Iterator[Step]: ...

    def __next__(self) -> Step: ...

    def close(self) -> None:
        """End here, with a finish; harmless where it has ended."""


class ReplyStream(Closeable, Iterator[str]):
    """Pieces of an answer's text, none of them empty.

    Iterate it in one thread; `cancel` may be called from any. Leaving it before its end (its
    `with` block, or the last reference to it) cancels the answer.

    Args:
        generation: the answer.
        cancellation: what `generation` looks at.
        receipt: makes the receipt from how it ended.
        on_end: called once, with the reply, or with None where an error ended it.
        parse: makes the reply's `parsed`, or its `tool_calls`, from the whole text and why it
            ended; what it raises comes at the end of the stream.
    """

    def __init__(
        self,
        generation: StepSource,
        cancellation: CancellationToken,
        *,
        receipt: Callable[[Finish], Receipt],
        on_end: Callable[[Reply | None], None],
        parse: Callable[[str, FinishReason], Any] | None = None,
    ) -> None:
        self._generation = generation
        self._cancellation = cancellation
        self._receipt = receipt
        self._on_end = on_end
        self._parse = parse
        self._pieces: list[str] = []
        self._reply: Reply | None = None
        self._ended = False

    def __next__(self) -> str:
        if self._ended:
            raise StopIteration
        try:
            for step in self._generation:
                if step.text:
                    self._pieces.append(step.text)
                    return step.text
            parsed = self._parsed()
        except BaseException:
            self._ended = True
            self._on_end(None)
            raise
        reply = self._end(parsed)
        if reply.finish_reason == "deadline" and not reply.tokens:
            raise DeadlineExceeded(
                "The deadline passed before the first token.",
                hint="Allow more time, or shorten the prompt.",
            )
        raise StopIteration

    @property
    def reply(self) -> Reply:
        """The whole answer.

        Raises:
            RequestError: it has not ended, or an error ended it.
        """
        if self._reply is None:
            raise RequestError(
                "There is no reply: the answer was not read to its end.",
                hint="Iterate the stream first, or close it for what is there.",
            )
        return self._reply

    def cancel(self) -> None:
        """End the answer at once, whatever it is at; the stream then ends with what is there."""
        self._cancellation.cancel()

    def close(self) -> None:
        """End the answer here; harmless where it has ended."""
        if not self._ended:
            self._generation.close()
            self._end()

    def _parsed(self) -> Any:
        finish = self._generation.finish
        assert finish is not None, "a generation that ended has a finish"
        if self._parse is None or (finish.reason == "deadline" and not finish.tokens):
            return None
        return self._parse("".join(self._pieces), finish.reason)

    def _end(self, parsed: Any = None) -> Reply:
        self._ended = True
        finish = self._generation.finish
        assert finish is not None, "a generation that ended has a finish"
        receipt = self._receipt(finish)
        calls = parsed if isinstance(parsed, ToolCalls) else ()
        self._reply = Reply(
            "".join(self._pieces),
            "tool_calls" if calls and finish.reason == "stop" else finish.reason,
            receipt,
            finish.tokens,
            None if isinstance(parsed, ToolCalls) else parsed,
            calls,
        )
        self._on_end(self._reply)
        return self._reply

    def __del__(self) -> None:
        self.close()


AsyncReplyStream: TypeAlias = AsyncStream[str, Reply]
