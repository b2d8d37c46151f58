"""An answer: pieces of text while it is made, then the reply."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from edgesdk.errors import DeadlineExceeded, RequestError
from edgesdk.generation.finish import Finish, FinishReason
from edgesdk.generation.loop import Step
from edgesdk.generation.streaming import AsyncStream
from edgesdk.receipt import Receipt
from edgesdk.system.closing import Closeable
from edgesdk.tools.call_messages import call_message
from edgesdk.tools.calls import ToolCall, ToolCalls

if TYPE_CHECKING:
    from edgesdk.request import Request


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        text: all of it; where it calls tools, the calls as the model wrote them. Empty where the
            answer ended in the reasoning before it (see the receipt's `ended_in_reasoning`).
        finish_reason: why it ended; also on the receipt. "tool_calls" where it ended by itself
            and waits for the results of `tool_calls`.
        tokens: its ids, the end token left out.
        parsed: the value, where the request set an output format: an instance of the schema's
            type, a JSON value, or the text. None without a format, and of a cancelled answer.
        tool_calls: the calls of tools that were offered. Arguments fit the tool, unless `problem`
            says otherwise.
        reasoning: what the model thought before it answered; "" where it did not. It is no part of
            `text`.
    """

    text: str
    finish_reason: FinishReason | Literal["tool_calls"]
    receipt: Receipt
    tokens: tuple[int, ...]
    parsed: Any = None
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message of the conversation, in the form of OpenAI's API.

        It has the reasoning too, as `reasoning_content`; a chat template leaves out what it does
        not want.
        """
        calls = self.tool_calls
        words = calls.words if isinstance(calls, ToolCalls) and calls else self.text
        return call_message(words, self.tool_calls, self.reasoning)


@dataclass(frozen=True)
class ReasoningDelta:
    """The model's reasoning goes on with `text`; `route` says whose. It is no part of the reply's
    text."""

    text: str
    route: Literal["local", "cloud"] = "cloud"


# What an answer is made of while it comes: its text, and the reasoning before it.
ReplyPart: TypeAlias = str | ReasoningDelta


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
    """Pieces of an answer's text, none of them empty. `parts` has its reasoning too.

    Iterate it in one thread; `cancel` may be called from any. Leaving it before its end (its
    `with` block, or the last reference to it) cancels the answer.

    Args:
        generation: the answer.
        request: what it is an answer to. Where it has tools, calls are held back: they are no
            pieces.
        receipt: makes the receipt from how it ended.
        on_end: called once, with the reply, or with None where an error ended it.
        parse: makes the reply's `parsed`, or its `tool_calls`, from the whole text and why it
            ended; what it raises comes at the end of the stream.
    """

    def __init__(
        self,
        generation: StepSource,
        request: Request,
        *,
        receipt: Callable[[Finish], Receipt],
        on_end: Callable[[Reply | None], None],
        parse: Callable[[str, FinishReason], Any] | None = None,
    ) -> None:
        self._generation = generation
        self._cancellation = request.cancellation
        self._receipt = receipt
        self._on_end = on_end
        self._parse = parse
        self._finder = request.call_finder()
        self._texts: list[str] = []
        self._parts: list[ReplyPart] = []
        # Made, and not given out yet.
        self._waiting: deque[ReplyPart] = deque()
        self._reply: Reply | None = None
        self._ended = False

    def parts(self) -> PartStream:
        """The same stream with the reasoning, in place of iterating this one."""
        return PartStream(self)

    def __next__(self) -> str:
        while True:
            part = self.next_part()
            if isinstance(part, str):
                return part

    def next_part(self) -> ReplyPart:
        """The next piece of the text or of the reasoning; raises StopIteration at the end."""
        if self._ended:
            raise StopIteration
        try:
            while not self._waiting:
                step = next(self._generation, None)
                if step is None:
                    break
                if step.reasoning:
                    self._waiting.append(ReasoningDelta(step.reasoning, "local"))
                if step.text:
                    self._texts.append(step.text)
                    words = step.text if self._finder is None else self._finder.feed(step.text)
                    self._waiting += [words] if words else []
            if self._waiting:
                self._parts.append(self._waiting.popleft())
                return self._parts[-1]
            parsed = self._parsed()
            if rest := self._held_words(parsed):
                self._parts.append(rest)
                return rest
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
        return self._parse(self._text, finish.reason)

    def _held_words(self, parsed: Any) -> str:
        """What was held back as a possible call, and is none; "" where it is one, whole or cut."""
        finder, self._finder = self._finder, None
        finish = self._generation.finish
        is_cut = finish is not None and finish.reason != "stop"
        if finder is None or parsed or (is_cut and finder.is_marked):
            return ""
        return finder.held

    @property
    def _text(self) -> str:
        return "".join(self._texts)

    def _end(self, parsed: Any = None) -> Reply:
        self._ended = True
        self._parts += self._waiting
        finish = self._generation.finish
        assert finish is not None, "a generation that ended has a finish"
        receipt = self._receipt(finish)
        calls = parsed if isinstance(parsed, ToolCalls) else ()
        self._reply = Reply(
            self._text,
            "tool_calls" if calls and finish.reason == "stop" else finish.reason,
            receipt,
            finish.tokens,
            None if isinstance(parsed, ToolCalls) else parsed,
            calls,
            "".join(part.text for part in self._parts if isinstance(part, ReasoningDelta)),
        )
        self._on_end(self._reply)
        return self._reply

    def __del__(self) -> None:
        self.close()


class PartStream(Closeable, Iterator[ReplyPart]):
    """The pieces of an answer with its reasoning: texts, and `ReasoningDelta`s before them."""

    def __init__(self, stream: ReplyStream) -> None:
        self._stream = stream

    def __next__(self) -> ReplyPart:
        return self._stream.next_part()

    @property
    def reply(self) -> Reply:
        """See `ReplyStream.reply`."""
        return self._stream.reply

    def cancel(self) -> None:
        """See `ReplyStream.cancel`."""
        self._stream.cancel()

    def close(self) -> None:
        """See `ReplyStream.close`."""
        self._stream.close()


class AsyncReplyStream(AsyncStream[str, Reply]):
    """`ReplyStream` for asyncio; see `edgesdk.generation.streaming.AsyncStream`."""

    def __init__(self, stream: ReplyStream) -> None:
        super().__init__(stream)
        self._texts = stream

    def parts(self) -> AsyncStream[ReplyPart, Reply]:
        """The same stream with the reasoning, in place of iterating this one."""
        return AsyncStream(self._texts.parts())
