"""Messages as OpenAI's API has them, and the conversation that a chat template is given."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from edgesdk.server.api_errors import ApiError
from edgesdk.text.prompts import as_messages


class StrictModel(BaseModel):
    """A part of a request. It takes no other fields, and converts no values."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class MessageModel(StrictModel):
    """A part of a message or of a tool. Its other fields, as `cache_control`, are marks of clients
    and clouds, which say nothing to a model on this machine."""

    model_config = ConfigDict(extra="ignore")


class TextPart(MessageModel):
    """Text."""

    type: Literal["text"]
    text: str


class ImageUrl(MessageModel):
    """The address of a picture, or its bytes as a data URL."""

    url: Annotated[str, Field(min_length=1)]
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(MessageModel):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(MessageModel):
    """A sound, in base64."""

    data: Annotated[str, Field(min_length=1)]
    format: str


class AudioPart(MessageModel):
    """A sound."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class InputFile(MessageModel):
    """A file: its bytes as a data URL, or the id that the cloud gave it."""

    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class FilePart(MessageModel):
    """A file."""

    type: Literal["file"]
    file: InputFile


ContentPart = Annotated[TextPart | ImagePart | AudioPart | FilePart, Field(discriminator="type")]
# Discriminated beforehand, so that an error is about what was sent; the tags are in its path.
TEXT_TAG, PARTS_TAG = "words", "parts"
Content = Annotated[
    Annotated[str, Tag(TEXT_TAG)] | Annotated[list[ContentPart], Tag(PARTS_TAG)],
    Discriminator(lambda content: PARTS_TAG if isinstance(content, list) else TEXT_TAG),
]


class MessageFunctionCall(MessageModel):
    """The function that an assistant called; `arguments` is JSON."""

    name: Annotated[str, Field(min_length=1)]
    arguments: str


class MessageToolCall(MessageModel):
    """A call in an assistant's message."""

    id: str
    type: Literal["function"] = "function"
    function: MessageFunctionCall


class ChatMessage(MessageModel):
    """A message of a conversation.

    Clients may send an answer back as it came, with all the fields that answers have.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    # What the model thought before, in DeepSeek's API and in OpenRouter's. The chat template takes
    # of it what it wants; a cloud is not sent it.
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    audio: None = None
    function_call: None = None

    @property
    def text(self) -> str | None:
        """The text of the content in one piece."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content if isinstance(part, TextPart))
        return self.content

    @property
    def first_media(self) -> int | None:
        """The index of the first part that is not text."""
        parts = self.content if isinstance(self.content, list) else []
        return next((k for k, part in enumerate(parts) if not isinstance(part, TextPart)), None)

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates know it: with older role names, and without its calls.

        The content is a text, or a list of parts where one of them is not text.
        """
        role = "system" if self.role == "developer" else self.role
        named = {} if self.name is None else {"name": self.name}
        if self.role == "assistant" and (reasoning := self.reasoning_content or self.reasoning):
            named["reasoning_content"] = reasoning
        content: Any = self.text
        if isinstance(self.content, list) and self.first_media is not None:
            content = [part.model_dump(exclude_none=True) for part in self.content]
        return {"role": role, "content": content, **named}


def uses_tools(messages: Iterable[ChatMessage]) -> bool:
    """Whether messages have calls, or results of calls."""
    return any(message.role == "tool" or message.tool_calls for message in messages)


def template_messages(
    messages: Sequence[ChatMessage], *, media: bool = False
) -> list[dict[str, Any]]:
    """Turn messages into those that a chat template takes.

    Calls get ids by their place in the conversation: Mistral's templates insist on nine letters
    and digits, and ids that are the same each time keep the KV cache.

    Args:
        media: whether users may send pictures, sounds and files, because a cloud may take them.

    Raises:
        ApiError: 400; nobody can take pictures, sounds or files, a result answers no call, a call
            has no result, or arguments are not an object.
        EmptyPrompt, RequestError: there is nothing to answer.
    """
    template: list[dict[str, Any]] = []
    # Calls without a result so far: by the client's id, the id and name that the template gets.
    pending: dict[str, tuple[str, str]] = {}
    made = 0
    for index, message in enumerate(messages):
        at = f"messages.{index}"
        if message.first_media is not None and not (media and message.role == "user"):
            raise _media_refused(message, f"{at}.content.{message.first_media}")
        converted = message.for_template()
        if message.role == "tool":
            template.append(converted | _result(message, pending, at))
            continue
        if pending:
            raise _missing_results(pending, at)
        calls = message.tool_calls or []
        if calls:
            converted |= {"content": message.text or "", "tool_calls": []}
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
            converted["tool_calls"].append({"id": key, "type": "function", "function": function})
        template.append(converted)
    if pending:
        raise _missing_results(pending, "messages")
    # A result may well be empty, where any other last message would leave nothing to answer.
    return template if messages[-1].role == "tool" else as_messages(template)


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
