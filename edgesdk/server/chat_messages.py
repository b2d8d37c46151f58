"""Messages as OpenAI's API has them, and the conversation that a chat template is given."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from edgesdk.server.api_errors import ApiError
from edgesdk.server.content_parts import STRICT, Content, TextPart, as_sent
from edgesdk.text.prompts import as_messages


class MessageFunctionCall(BaseModel):
    """What an assistant called; `arguments` is JSON."""

    model_config = STRICT

    name: Annotated[str, Field(min_length=1)]
    arguments: str
    # What OpenAI's client makes of the arguments, and sends back with them.
    parsed_arguments: Any = None


class MessageToolCall(BaseModel):
    """A call in an assistant's message."""

    model_config = STRICT

    id: str
    type: Literal["function"] = "function"
    function: MessageFunctionCall
    index: int | None = None


class ChatMessage(BaseModel):
    """A message of a conversation.

    Fields that answers have and that say nothing to a model are taken, so that an answer can be
    sent back as it came.
    """

    model_config = STRICT

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    # What a cloud's model thought, as DeepSeek's API has it, and OpenRouter's.
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    annotations: list[Any] | None = None
    parsed: Any = None
    audio: None = None
    function_call: None = None

    @property
    def text(self) -> str | None:
        """The words of the content in one piece."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content if isinstance(part, TextPart))
        return self.content

    @property
    def media(self) -> int | None:
        """The place of the first part that is not text."""
        parts = self.content if isinstance(self.content, list) else []
        return next((k for k, part in enumerate(parts) if not isinstance(part, TextPart)), None)

    def plain(self) -> dict[str, Any]:
        """The message as chat templates know it, without calls, and with older role names; with
        its parts where some are not text."""
        role = "system" if self.role == "developer" else self.role
        named = {} if self.name is None else {"name": self.name}
        content: Any = self.text
        if isinstance(self.content, list) and self.media is not None:
            content = [as_sent(part) for part in self.content]
        return {"role": role, "content": content, **named}


def uses_tools(messages: Iterable[ChatMessage]) -> bool:
    """Whether there are calls, or results of calls."""
    return any(message.role == "tool" or message.tool_calls for message in messages)


def template_messages(
    messages: Sequence[ChatMessage], *, media: bool = False
) -> list[dict[str, Any]]:
    """The messages for a chat template.

    Calls get ids by their place in the conversation: Mistral's templates insist on nine letters
    and digits, and ids that are the same each time keep the KV cache.

    Args:
        media: whether there is anybody for pictures, sounds and files; then users may send some.

    Raises:
        ApiError: 400; there are pictures, sounds or files for nobody, a result answers no call, a
            call has no result, or arguments are no object.
        EmptyPrompt, RequestError: there is nothing to answer.
    """
    told: list[dict[str, Any]] = []
    # Calls without a result so far: by the client's id, the id and name that the template gets.
    pending: dict[str, tuple[str, str]] = {}
    made = 0
    for index, message in enumerate(messages):
        at = f"messages.{index}"
        if message.media is not None and not (media and message.role == "user"):
            raise _media_refused(message, f"{at}.content.{message.media}")
        plain = message.plain()
        if message.role == "tool":
            told.append(plain | _result(message, pending, at))
            continue
        if pending:
            raise _missing_results(pending, at)
        calls = message.tool_calls or []
        if calls:
            plain |= {"content": message.text or "", "tool_calls": []}
        if calls and message.role != "assistant":
            raise ApiError(400, "Only an assistant calls tools.", param=f"{at}.tool_calls")
        for place, call in enumerate(calls):
            key, made = f"call{made:05d}", made + 1
            if call.id in pending:
                raise ApiError(
                    400, f"Two calls have the id {call.id!r}.", param=f"{at}.tool_calls.{place}.id"
                )
            pending[call.id] = (key, call.function.name)
            arguments = _arguments(call, f"{at}.tool_calls.{place}.function.arguments")
            function = {"name": call.function.name, "arguments": arguments}
            plain["tool_calls"].append({"id": key, "type": "function", "function": function})
        told.append(plain)
    if pending:
        raise _missing_results(pending, "messages")
    # A result may well be empty, where any other last message would leave nothing to answer.
    return told if messages[-1].role == "tool" else as_messages(told)


def _result(message: ChatMessage, pending: dict[str, tuple[str, str]], at: str) -> dict[str, Any]:
    answered = pending.pop(message.tool_call_id or "", None)
    if answered is None:
        raise ApiError(
            400,
            "A message of the role 'tool' must answer a call of the assistant's message before it,"
            f" by its tool_call_id; {message.tool_call_id!r} is none.",
            param=f"{at}.tool_call_id",
        )
    if message.text is None:
        raise ApiError(400, "The result of a call has no content.", param=f"{at}.content")
    key, name = answered
    return {"tool_call_id": key, "name": name}


def _media_refused(message: ChatMessage, param: str) -> ApiError:
    who = "Only a user sends" if message.role != "user" else "The models of this server cannot take"
    return ApiError(400, f"{who} pictures, sounds and files.", param=param, code="not_text")


def _missing_results(pending: dict[str, tuple[str, str]], param: str) -> ApiError:
    return ApiError(
        400,
        "An assistant's message with tool_calls must be followed by a message of the role 'tool'"
        f" for each of them; missing are: {', '.join(map(repr, pending))}.",
        param=param,
    )


def _arguments(call: MessageToolCall, param: str) -> dict[str, Any]:
    try:
        # Some clients send "" where a function takes nothing.
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(400, "The arguments of a call are not a JSON object.", param=param)
    return arguments
