"""Requests of Ollama's API, written as chat completions, or as completions where they are raw.

Source: https://docs.ollama.com/api.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from edgesdk.server.api_errors import ApiError
from edgesdk.server.chat_messages import MessageModel, StrictModel
from edgesdk.server.dialects.conversation import ConversationWriter, Json

# Options that Ollama itself reads no more.
_DEAD_OPTIONS = frozenset({"penalize_newline", "logits_all", "embedding_only"})
# Ollama fills the context with -2, and knows no limit with -1: here both end at the context's end.
_NO_LIMIT = -1

# A switch as an effort; `think` may be an effort itself.
_EFFORTS: dict[Any, str] = {True: "medium", False: "none"}


class OllamaFunction(MessageModel):
    """The function that an assistant called."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class OllamaCall(MessageModel):
    """A call in an assistant's message."""

    id: str = ""
    function: OllamaFunction


class OllamaMessage(MessageModel):
    """A message of a conversation; `images` are pictures in base64."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[OllamaCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaRequest(StrictModel):
    """What the bodies of `/api/chat` and `/api/generate` share."""

    model: str = ""
    stream: bool | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    keep_alive: str | float | None = None
    think: bool | str | None = None
    # Only what changes nothing.
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    truncate: Any = None
    shift: Any = None

    @property
    def streams(self) -> bool:
        """Ollama streams unless it is told not to."""
        return self.stream is not False

    def fields(self) -> Json:
        """Of a chat completion: all but what is said."""
        options = {k: v for k, v in (self.options or {}).items() if k not in _DEAD_OPTIONS}
        predicts = options.get("num_predict")
        if isinstance(predicts, int) and predicts < 0:
            options["num_predict"] = _NO_LIMIT
        fields = {
            **options,
            "model": self.model,
            "stream": self.streams,
            "keep_alive": self.keep_alive,
            "response_format": self._response_format(),
            "reasoning_effort": _EFFORTS.get(self.think, self.think),
        }
        return {name: value for name, value in fields.items() if value is not None}

    def _response_format(self) -> Json | None:
        if not self.format and not isinstance(self.format, dict):
            return None
        if self.format == "json":
            return {"type": "json_object"}
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": self.format}}


class OllamaChatRequest(OllamaRequest):
    """The body of `/api/chat`."""

    messages: list[OllamaMessage] | None = None
    tools: list[dict[str, Any]] | None = None

    @property
    def loads(self) -> bool:
        """Whether the model is to be loaded, and nothing else."""
        return not self.messages

    def chat_body(self) -> Json:
        """The request as a chat completion.

        Raises:
            ApiError: 400; a result answers no call.
        """
        writer = ConversationWriter()
        # Results name their call by its tool or not at all, so they answer calls in order.
        pending: list[tuple[str, str]] = []
        for index, message in enumerate(self.messages or ()):
            content = message.content or ""
            if message.role == "system":
                writer.add_system(content)
            elif message.role == "user":
                writer.add_user(_with_images(content, message.images or []))
            elif message.role == "tool":
                writer.add_result(_answered(message, pending, index), content)
            else:
                writer.add_reasoning(message.thinking or "")
                writer.add_answer(content)
                for place, call in enumerate(message.tool_calls or ()):
                    key = call.id or f"call_{index}_{place}"
                    pending.append((key, call.function.name))
                    writer.add_call(key, call.function.name, call.function.arguments)
        tools = {"tools": self.tools} if self.tools else {}
        return {**self.fields(), "messages": writer.messages, **tools}


class OllamaGenerateRequest(OllamaRequest):
    """The body of `/api/generate`."""

    prompt: str | None = None
    system: str | None = None
    images: list[str] | None = None
    raw: bool | None = None
    # Only empty: the model's own template is used, and conversations are chats.
    suffix: Literal[""] | None = None
    template: Literal[""] | None = None
    context: list[int] | None = Field(default=None, max_length=0)

    @property
    def loads(self) -> bool:
        """Whether the model is to be loaded, and nothing else."""
        return not self.prompt

    def chat_body(self) -> Json:
        """The request as a chat completion; as a completion where it is raw."""
        if self.raw:
            return {"max_tokens": _NO_LIMIT, **self.fields(), "prompt": self.prompt}
        writer = ConversationWriter()
        writer.add_system(self.system or "")
        writer.add_user(_with_images(self.prompt or "", self.images or []))
        return {**self.fields(), "messages": writer.messages}


def _with_images(text: str, images: list[str]) -> str | list[Json]:
    if not images:
        return text
    urls = [{"url": f"data:image/png;base64,{image}"} for image in images]
    parts: list[Json] = [{"type": "image_url", "image_url": url} for url in urls]
    return [{"type": "text", "text": text}, *parts]


def _answered(message: OllamaMessage, pending: list[tuple[str, str]], index: int) -> str:
    """The id of the call that a result answers, which is no more pending."""
    wanted = (message.tool_call_id, message.tool_name)
    named = [call for call in pending if call[0] == wanted[0] or call[1] == wanted[1]]
    found = named or (pending if wanted == (None, None) else [])
    if not found:
        raise ApiError(
            400, "This result of a tool answers no call before it.", param=f"messages.{index}"
        )
    call = found[0]
    pending.remove(call)
    return call[0]
