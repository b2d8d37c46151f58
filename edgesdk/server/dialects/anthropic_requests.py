"""Requests of Anthropic's Messages API, written as chat completions.

A block that says nothing to a model on this machine, as `cache_control`, is left out. Tools that
run at Anthropic, as web search, are refused by name: nobody here would run them.
Source: https://platform.claude.com/docs/en/api/messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from edgesdk.server.api_errors import ApiError
from edgesdk.server.chat_messages import MessageModel, StrictModel
from edgesdk.server.dialects.conversation import ConversationWriter, Json

# Claude Code's first block of the system prompt says who pays, and is another one in each request:
# the KV cache of all that follows would be lost.
_BILLING = "x-anthropic-billing-header:"


class AnthropicText(MessageModel):
    """Text."""

    type: Literal["text"]
    text: str


class AnthropicSource(MessageModel):
    """Where a picture or a document is."""

    type: Literal["base64", "url", "text", "content", "file"]
    media_type: str = ""
    data: str = ""
    url: str = ""
    file_id: str = ""


class AnthropicImage(MessageModel):
    """A picture."""

    type: Literal["image"]
    source: AnthropicSource


class AnthropicDocument(MessageModel):
    """A document."""

    type: Literal["document"]
    source: AnthropicSource
    title: str | None = None


class AnthropicThinking(MessageModel):
    """What the assistant thought; `signature` is Anthropic's own seal."""

    type: Literal["thinking"]
    thinking: str


class AnthropicRedactedThinking(MessageModel):
    """What the assistant thought, and nobody but Anthropic can read."""

    type: Literal["redacted_thinking"]


class AnthropicToolUse(MessageModel):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class AnthropicToolResult(MessageModel):
    """The result of a call."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: (
        str
        | list[
            Annotated[
                AnthropicText | AnthropicImage | AnthropicDocument, Field(discriminator="type")
            ]
        ]
        | None
    ) = None
    is_error: bool = False


AnthropicBlock = Annotated[
    AnthropicText
    | AnthropicImage
    | AnthropicDocument
    | AnthropicThinking
    | AnthropicRedactedThinking
    | AnthropicToolUse
    | AnthropicToolResult,
    Field(discriminator="type"),
]


class AnthropicMessage(MessageModel):
    """A message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[AnthropicBlock]


class AnthropicTool(MessageModel):
    """A tool. Those of a type other than "custom" are Anthropic's own."""

    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class AnthropicToolChoice(MessageModel):
    """Whether the answer must call a tool."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class AnthropicOutputFormat(MessageModel):
    """The JSON Schema of an answer."""

    type: Literal["json_schema"]
    # pydantic's own `schema` is a method.
    definition: Annotated[dict[str, Any], Field(alias="schema")]


class AnthropicOutput(MessageModel):
    """How the answer is to be."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: AnthropicOutputFormat | None = None


class AnthropicThinkingChoice(MessageModel):
    """Whether the model thinks before it answers."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = None


class AnthropicRequest(StrictModel):
    """The body of `/v1/messages`."""

    model: str = ""
    messages: Annotated[list[AnthropicMessage], Field(min_length=1)]
    system: str | list[AnthropicText] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: AnthropicThinkingChoice | None = None
    output_config: AnthropicOutput | None = None
    # An older name.
    output_format: AnthropicOutputFormat | None = None
    # These are about Anthropic's service, and change no answer.
    metadata: Any = None
    cache_control: Any = None
    service_tier: Any = None
    inference_geo: Any = None
    speed: Any = None
    diagnostics: Any = None
    context_management: Any = None
    betas: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None
    # Only empty: nobody here would run them.
    container: None = None
    mcp_servers: Annotated[list[Any], Field(max_length=0)] | None = None


def chat_body(request: AnthropicRequest) -> Json:
    """The request as a chat completion.

    Raises:
        ApiError: 400; a tool runs at Anthropic.
    """
    writer = ConversationWriter()
    writer.add_system(_system_text(request.system))
    for message in request.messages:
        _write(message, writer)
    output = request.output_config or AnthropicOutput()
    fields = {
        "model": request.model,
        "messages": writer.messages,
        "max_tokens": request.max_tokens,
        "stream": request.stream,
        "stop": request.stop_sequences or None,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "tools": [_tool(tool, index) for index, tool in enumerate(request.tools or ())] or None,
        **_tool_choice(request.tool_choice if request.tools else None),
        "response_format": _response_format(output.format or request.output_format),
        **_reasoning(request.thinking, output.effort),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _system_text(system: str | Sequence[AnthropicText] | None) -> str:
    blocks = [system] if isinstance(system, str) else [block.text for block in system or ()]
    return "\n\n".join(text for text in blocks if not text.startswith(_BILLING))


def _write(message: AnthropicMessage, writer: ConversationWriter) -> None:
    content = message.content
    blocks: Iterable[Any] = (
        [AnthropicText(type="text", text=content)] if isinstance(content, str) else content
    )
    if message.role == "system":
        writer.add_system("\n\n".join(b.text for b in blocks if isinstance(b, AnthropicText)))
    elif message.role == "assistant":
        _write_answer(blocks, writer)
    else:
        said: list[Json] = []
        for block in blocks:
            if isinstance(block, AnthropicToolResult):
                writer.add_result(block.tool_use_id, _result_content(block))
            elif isinstance(block, AnthropicText | AnthropicImage | AnthropicDocument):
                said.append(_part(block))
        if said:
            writer.add_user(_joined(said))


def _write_answer(blocks: Iterable[Any], writer: ConversationWriter) -> None:
    blocks = list(blocks)
    for block in blocks:
        if isinstance(block, AnthropicThinking):
            writer.add_reasoning(block.thinking)
    writer.add_answer("".join(b.text for b in blocks if isinstance(b, AnthropicText)))
    for block in blocks:
        if isinstance(block, AnthropicToolUse):
            writer.add_call(block.id, block.name, block.input)


def _part(block: AnthropicText | AnthropicImage | AnthropicDocument) -> Json:
    if isinstance(block, AnthropicText):
        return {"type": "text", "text": block.text}
    source = block.source
    if source.type == "text":
        return {"type": "text", "text": source.data}
    url = source.url or f"data:{source.media_type};base64,{source.data}"
    if isinstance(block, AnthropicImage):
        return {"type": "image_url", "image_url": {"url": url}}
    named = {"filename": block.title} if block.title else {}
    return {"type": "file", "file": {"file_data": url, **named}}


def _joined(parts: list[Json]) -> str | list[Json]:
    """Parts as one text where all of them are; templates know texts best."""
    if all(part["type"] == "text" for part in parts):
        return "\n\n".join(part["text"] for part in parts)
    return parts


def _result_content(block: AnthropicToolResult) -> str | list[Json]:
    content = block.content or ""
    said = content if isinstance(content, str) else _joined([_part(part) for part in content])
    # Chat templates have no word for a call that failed.
    return f"Error: {said}" if block.is_error and isinstance(said, str) else said


def _tool(tool: AnthropicTool, index: int) -> Json:
    if tool.type not in (None, "custom") or tool.input_schema is None:
        raise ApiError(
            400,
            f"tools.{index}: a tool of the type {tool.type or 'custom'!r} without an input_schema"
            " is Anthropic's own, which nobody here can run. Leave it out.",
            param=f"tools.{index}.type",
            code="unsupported_value",
        )
    function: Json = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(choice: AnthropicToolChoice | None) -> Json:
    if choice is None:
        return {}
    chosen: Any = {"any": "required"}.get(choice.type, choice.type)
    if choice.type == "tool":
        chosen = {"type": "function", "function": {"name": choice.name or ""}}
    parallel = {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    return {"tool_choice": chosen, **parallel}


def _reasoning(thinking: AnthropicThinkingChoice | None, effort: str | None) -> Json:
    effort = "xhigh" if effort == "max" else effort
    if thinking is not None and thinking.type == "disabled":
        return {"reasoning_effort": "none"}
    if thinking is not None and thinking.type == "enabled":
        budget = thinking.budget_tokens
        return {"reasoning_effort": effort or "medium", "max_reasoning_tokens": budget}
    return {"reasoning_effort": effort}


def _response_format(wanted: AnthropicOutputFormat | None) -> Json | None:
    if wanted is None:
        return None
    schema = {"name": "answer", "schema": wanted.definition}
    return {"type": "json_schema", "json_schema": schema}
