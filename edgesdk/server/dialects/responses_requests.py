"""Requests of OpenAI's Responses API, written as chat completions.

Source: https://platform.openai.com/docs/api-reference/responses/create.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from edgesdk.server.api_errors import ApiError
from edgesdk.server.chat_messages import MessageModel, StrictModel
from edgesdk.server.dialects.conversation import ConversationWriter, Json

# Codex and others offer these in every request, whoever they ask. They run at OpenAI, or in ways
# that only its own models know, so a model on this machine does not hear of them.
_IGNORED_TOOLS = frozenset(
    {
        *("web_search", "web_search_preview", "web_search_2025_08_26", "image_generation"),
        *("local_shell", "namespace", "tool_search"),
    }
)
_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})
# The only argument of a tool whose input is any text.
_CUSTOM_INPUT = "input"
_log = logging.getLogger("edgesdk.server")


class ResponsesReasoning(MessageModel):
    """How much the model reasons, and what of that is told."""

    effort: str | None = None
    summary: str | None = None


class ResponsesText(MessageModel):
    """The form of the answer's text."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(StrictModel):
    """The body of `/v1/responses`."""

    model: str = ""
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: ResponsesText | None = None
    reasoning: ResponsesReasoning | None = None
    metadata: dict[str, str] | None = None
    # Extras of OpenAI's own models and tools; nothing here has them.
    include: list[str] | None = None
    # These change no answer.
    user: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    stream_options: Any = None
    max_tool_calls: Any = None
    client_metadata: Any = None
    context_management: Any = None
    # Only what changes nothing.
    top_logprobs: Literal[0] | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    conversation: None = None
    prompt: None = None

    @field_validator("input", "tools", "tool_choice")
    @classmethod
    def _is_json(cls, given: Any) -> Any:
        """Raise where a number is none of JSON's: these are sent back with the response."""
        json.dumps(given, allow_nan=False)
        return given

    @property
    def items(self) -> list[Json]:
        """The input as a list of items."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        return self.input

    @property
    def known_tools(self) -> list[Json]:
        """The tools that the model hears of."""
        given = self.tools or []
        left_out = {_type_of(tool) for tool in given} & _IGNORED_TOOLS
        if left_out:
            _log.info(
                "Tools that nobody can run here are left out: %s", ", ".join(sorted(left_out))
            )
        return [tool for tool in given if _type_of(tool) not in _IGNORED_TOOLS]

    @property
    def custom_tools(self) -> frozenset[str]:
        """The names of the tools whose input is any text."""
        return frozenset(tool["name"] for tool in self.known_tools if _type_of(tool) == "custom")


@dataclass(frozen=True)
class ResponsesInput:
    """A request, with the whole conversation that it goes on with.

    Attributes:
        earlier: the items of the responses before, oldest first.
        find_item: gives an item that an earlier response had, by its id.
    """

    request: ResponsesRequest
    earlier: Sequence[Json]
    find_item: Callable[[str], Json | None]

    @property
    def items(self) -> list[Json]:
        """The items of the conversation, oldest first."""
        return [*self.earlier, *self.request.items]

    def chat_body(self) -> Json:
        """The request as a chat completion.

        Raises:
            ApiError: 400; an item or a tool is of a kind that is not supported.
        """
        request = self.request
        if "message.output_text.logprobs" in (request.include or ()):
            raise _unsupported("include", "message.output_text.logprobs")
        writer = ConversationWriter()
        writer.add_system(request.instructions or "")
        for item in self.earlier:
            _write(item, writer, "previous_response_id")
        for index, item in enumerate(request.items):
            at = f"input.{index}"
            if item.get("type") == "item_reference":
                item = self._referenced(item, at)
            _write(item, writer, at)
        tools = [_tool(tool, f"tools.{i}") for i, tool in enumerate(request.known_tools)]
        fields = {
            "model": request.model,
            "messages": writer.messages,
            "max_tokens": request.max_output_tokens,
            "stream": request.stream,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "tools": tools or None,
            "tool_choice": _tool_choice(request.tool_choice, any_tools=bool(tools)),
            "parallel_tool_calls": request.parallel_tool_calls if tools else None,
            "response_format": _response_format(request.text),
            "reasoning_effort": None if request.reasoning is None else request.reasoning.effort,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def _referenced(self, item: Json, at: str) -> Json:
        found = self.find_item(str(item.get("id")))
        if found is None:
            raise ApiError(
                400, f"There is no item {item.get('id')!r} any more. Send it as it is.", param=at
            )
        return found


def _write(item: Json, writer: ConversationWriter, at: str) -> None:
    match item:
        case {"type": "function_call", "call_id": str(key), "name": str(name)}:
            writer.add_call(key, name, str(item.get("arguments", "")))
        case {"type": "custom_tool_call", "call_id": str(key), "name": str(name)}:
            writer.add_call(key, name, {_CUSTOM_INPUT: item.get("input", "")})
        case {
            "type": "function_call_output" | "custom_tool_call_output",
            "call_id": str(key),
            "output": output,
        }:
            writer.add_result(key, _content(output, f"{at}.output"))
        case {"type": "reasoning"}:
            writer.add_reasoning(_reasoning_text(item, at))
        case {"role": str(role), "content": content} if item.get("type") in (None, "message"):
            _write_message(role, _content(content, f"{at}.content"), writer, at)
        case _:
            raise _unsupported(at, _type_of(item))


def _write_message(
    role: str, content: str | list[Json], writer: ConversationWriter, at: str
) -> None:
    if role == "user":
        writer.add_user(content)
        return
    if not isinstance(content, str):
        raise ApiError(400, "Only a user sends pictures and files.", param=f"{at}.content")
    if role in ("system", "developer"):
        writer.add_system(content)
    elif role == "assistant":
        writer.add_answer(content)
    else:
        raise _unsupported(f"{at}.role", role)


def _content(content: Any, at: str) -> str | list[Json]:
    """A content in the form of chat completions: one text where all its parts are texts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"{at} is neither a text nor a list of parts.", param=at)
    parts = [_part(part, f"{at}.{index}") for index, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any, at: str) -> Json:
    match part:
        case {"type": str(kind), "text": str(text)} if kind in _TEXT_PARTS:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": str(url)}:
            return {"type": "image_url", "image_url": {"url": url}}
        case {"type": "input_file"}:
            names = ("file_data", "file_id", "filename")
            return {"type": "file", "file": {n: part[n] for n in names if part.get(n)}}
    raise _unsupported(at, _type_of(part) if isinstance(part, dict) else "a part without a type")


def _reasoning_text(item: Json, at: str) -> str:
    """The text of a reasoning item: of its content, or of its summary."""
    parts = item.get("content") or item.get("summary") or []
    if not isinstance(parts, list):
        raise ApiError(400, f"{at}.content is no list of parts.", param=f"{at}.content")
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def _type_of(given: Json) -> str:
    return str(given.get("type"))


def _tool(tool: Json, at: str) -> Json:
    match tool:
        case {"type": "function", "name": str(name)}:
            parameters = tool.get("parameters")
        case {"type": "custom", "name": str(name)}:
            parameters = {
                "type": "object",
                "properties": {_CUSTOM_INPUT: {"type": "string"}},
                "required": [_CUSTOM_INPUT],
            }
        case _:
            raise _unsupported(f"{at}.type", _type_of(tool))
    function = {"name": name, "parameters": parameters or {"type": "object", "properties": {}}}
    function |= {key: tool[key] for key in ("description", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: Any, *, any_tools: bool) -> Any:
    match choice:
        case {"type": "function" | "custom", "name": name}:
            return {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": mode, "tools": list(tools)}:
            named = [_tool_choice(tool, any_tools=True) for tool in tools]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}
        case "auto" | "none" if not any_tools:
            return None
    return choice


def _response_format(text: ResponsesText | None) -> Json | None:
    wanted = None if text is None else text.format
    if wanted is None or wanted.get("type") != "json_schema":
        return wanted
    schema = {key: value for key, value in wanted.items() if key != "type"}
    return {"type": "json_schema", "json_schema": schema}


def _unsupported(param: str, value: str) -> ApiError:
    return ApiError(
        400, f"{param}: {value!r} is not supported.", param=param, code="unsupported_value"
    )
