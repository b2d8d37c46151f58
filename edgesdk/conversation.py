"""What every kind of chat keeps to: one turn at a time, and none while results are waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from edgesdk.errors import EmptyPrompt, RequestError
from edgesdk.text.prompts import messages_of
from edgesdk.tools.calls import ToolCall
from edgesdk.tools.messages import Message, unanswered, with_result


class OneAtATime:
    """Held by the answer that is under way; nobody waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def begin(self) -> None:
        """An answer begins.

        Raises:
            RequestError: another one is under way.
        """
        if not self._lock.acquire(blocking=False):
            raise RequestError(
                "This chat is still answering.",
                hint="Read that stream to its end or close it first; use a chat per thread.",
            )

    def end(self) -> None:
        """It is over."""
        self._lock.release()

    @contextmanager
    def held(self) -> Iterator[None]:
        """`begin` and `end` around a block."""
        self.begin()
        try:
            yield
        finally:
            self.end()


def news_of(prompt: str | None, turns: Sequence[Message]) -> list[Message]:
    """What a prompt adds to a conversation; nothing where it goes on from results of calls.

    Raises:
        RequestError: a call has no result yet.
        EmptyPrompt: there is nothing to answer.
    """
    waiting = unanswered(turns)
    if waiting:
        raise RequestError(
            f"The model waits for the result of {', '.join(call.name for call in waiting)}.",
            hint="Give it with chat.give(call, result); it may say that nothing was done.",
        )
    asked = [] if prompt is None else messages_of(prompt)
    if not asked and (not turns or turns[-1]["role"] != "tool"):
        raise EmptyPrompt("There is nothing to answer.", hint="Give a prompt.")
    return asked


def given(turns: Sequence[Message], call: ToolCall, result: Any) -> list[Message]:
    """A conversation with what one of its calls gave: a text as it is, anything else as JSON.

    Raises:
        RequestError: no result of that call is waited for.
    """
    from edgesdk.tools.running import text_of

    if call.id not in {waiting.id for waiting in unanswered(turns)}:
        raise RequestError(
            f"This chat waits for no result of the call {call.id!r} of {call.name!r}.",
            hint="Give one result for each of chat.waiting_for.",
        )
    return with_result(turns, call, text_of(result))
