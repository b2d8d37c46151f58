"""Builds answers as OpenAI's Responses API has them, whole or as numbered events."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from edgesdk.generation.loop import Step
from edgesdk.hybrid.cloud.cloud_reply import Restart
from edgesdk.reply import ReasoningDelta
from edgesdk.server.api_errors import ApiError
from edgesdk.server.dialects.responses_requests import ResponsesRequest
from edgesdk.server.responses import (
    AnswerReply,
    Json,
    ResponseMetadata,
    ResponsePart,
    answer_reasoning,
    answer_report,
    answer_usage,
    arguments_json,
)
from edgesdk.tools.calls import ToolCall

# The names of an item's text, by the item's type: its event, and the type of its part.
_TEXTS = {"message": ("output_text", "output_text"), "reasoning": ("reasoning_text",) * 2}
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "custom_tool_call": "ctc"}


class ResponsesAnswer:
    """Implements `ResponseBuilder` for `/v1/responses`.

    An item is open while its deltas come; the next one, or the end, closes it.

    Args:
        keep: takes the response when it is whole.
    """

    def __init__(
        self, metadata: ResponseMetadata, request: ResponsesRequest, keep: Callable[[Json], None]
    ) -> None:
        self._metadata = metadata
        self._request = request
        self._keep = keep
        self._custom_tools = request.custom_tools
        self._output: list[Json] = []
        self._open: Json | None = None
        self._text = ""
        self._num_events = 0

    def first_chunks(self) -> list[Json]:
        begun = self._response("in_progress")
        return [self._event("created", response=begun), self._event("in_progress", response=begun)]

    def part_chunks(self, part: ResponsePart, steps: list[Step]) -> list[Json]:
        if isinstance(part, ToolCall):
            return [*self._close(), *self._call(part)]
        if isinstance(part, Restart):
            # `StreamBuffer` ends an answer that would need it.
            return []
        if isinstance(part, ReasoningDelta):
            return self._delta("reasoning", part.text)
        return self._delta("message", part)

    def last_chunks(self, reply: AnswerReply) -> list[Json]:
        closed = self._close()
        cut = reply.finish_reason not in ("stop", "tool_calls")
        status = "incomplete" if cut else "completed"
        response = self._response(status) | {"usage": _usage(reply)} | answer_report(reply)
        if cut:
            filtered = reply.finish_reason == "content_filter"
            reason = "content_filter" if filtered else "max_output_tokens"
            response["incomplete_details"] = {"reason": reason}
        self._keep(response)
        return [*closed, self._event(status, response=response)]

    def usage_chunk(self, reply: AnswerReply) -> None:
        return None

    def complete(self, steps: list[Step], parts: list[ResponsePart], reply: AnswerReply) -> Json:
        if reasoning := answer_reasoning(reply):
            parts = [ReasoningDelta(reasoning), *parts]
        for part in parts:
            if part != "":
                self.part_chunks(part, steps)
        whole: Json = self.last_chunks(reply)[-1]["response"]
        return whole

    def error_chunk(self, error: ApiError) -> Json:
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        failed = self._response("failed") | {"error": {"code": code, "message": error.message}}
        return self._event("failed", response=failed)

    def _response(self, status: str) -> Json:
        request = self._request
        return {
            "id": f"resp_{self._metadata.key}",
            "object": "response",
            "created_at": self._metadata.created,
            "status": status,
            "model": self._metadata.model,
            "output": list(self._output),
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id,
            "reasoning": _given(request.reasoning),
            "store": request.store is not False,
            "temperature": request.temperature,
            "text": {"format": {"type": "text"}} | _given(request.text),
            "tool_choice": request.tool_choice or "auto",
            "tools": request.known_tools,
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    def _event(self, kind: str, **fields: Any) -> Json:
        number, self._num_events = self._num_events, self._num_events + 1
        return {"type": f"response.{kind}", "sequence_number": number, **fields}

    def _item_event(self, kind: str, item: Json, **fields: Any) -> Json:
        return self._event(kind, item_id=item["id"], output_index=len(self._output), **fields)

    def _added(self, kind: str, **fields: Any) -> Json:
        """The event that opens an item."""
        key = f"{_PREFIXES[kind]}_{uuid.uuid4().hex}"
        self._open = {"id": key, "type": kind, "status": "in_progress", **fields}
        index = len(self._output)
        return self._event("output_item.added", output_index=index, item=self._open)

    def _done(self, **fields: Any) -> Json:
        """The event that closes the open item, which gets these fields."""
        assert self._open is not None, "an item is open"
        item = self._open | {"status": "completed"} | fields
        done = self._event("output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._open = None
        return done

    def _delta(self, kind: str, text: str) -> list[Json]:
        events: list[Json] = []
        name, part = _TEXTS[kind]
        if self._open is None or self._open["type"] != kind:
            events = self._close()
            begun: Json = {"role": "assistant"} if kind == "message" else {"summary": []}
            events.append(self._added(kind, content=[], **begun))
            events.append(self._part_event("content_part.added", _part(part, "")))
        assert self._open is not None, "it was opened"
        self._text += text
        more = _logprobs(kind)
        delta = self._item_event(f"{name}.delta", self._open, content_index=0, delta=text, **more)
        return [*events, delta]

    def _part_event(self, kind: str, part: Json) -> Json:
        assert self._open is not None, "an item is open"
        return self._item_event(kind, self._open, content_index=0, part=part)

    def _close(self) -> list[Json]:
        """Close the message or the reasoning that is open."""
        if self._open is None:
            return []
        kind, text, self._text = self._open["type"], self._text, ""
        name, part = _TEXTS[kind]
        whole, more = _part(part, text), _logprobs(kind)
        return [
            self._item_event(f"{name}.done", self._open, content_index=0, text=text, **more),
            self._part_event("content_part.done", whole),
            self._done(content=[whole]),
        ]

    def _call(self, call: ToolCall) -> list[Json]:
        named = {"call_id": call.id, "name": call.name}
        if call.name in self._custom_tools:
            written = str(call.arguments.get("input", ""))
            kind, field, event = "custom_tool_call", "input", "custom_tool_call_input"
        else:
            written = arguments_json(call)
            kind, field, event = "function_call", "arguments", "function_call_arguments"
        added = self._added(kind, **named, **{field: ""})
        assert self._open is not None, "it was opened"
        return [
            added,
            self._item_event(f"{event}.delta", self._open, delta=written),
            self._item_event(f"{event}.done", self._open, **{field: written}),
            self._done(**{field: written}),
        ]


def _given(part: BaseModel | None) -> Json:
    """The fields of a part of the request that it was given."""
    return {} if part is None else part.model_dump(exclude_none=True)


def _part(kind: str, text: str) -> Json:
    more: Json = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return {"type": kind, "text": text, **more}


def _logprobs(kind: str) -> Json:
    return {"logprobs": []} if kind == "message" else {}


def _usage(reply: AnswerReply) -> Json | None:
    usage = answer_usage(reply)
    if usage is None:
        return None
    cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    reasoning = usage.get("completion_tokens_details", {}).get("reasoning_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage["total_tokens"],
    }
