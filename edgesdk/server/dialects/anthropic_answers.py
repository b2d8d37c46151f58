"""Builds answers as Anthropic's Messages API has them, whole or as events."""

from __future__ import annotations

from edgesdk.generation.loop import Step
from edgesdk.hybrid.cloud.cloud_reply import Restart
from edgesdk.reply import ReasoningDelta
from edgesdk.server.api_errors import ApiError
from edgesdk.server.dialects.wire_formats import wire_format_of
from edgesdk.server.responses import (
    AnswerReply,
    Json,
    ResponseMetadata,
    ResponsePart,
    answer_reasoning,
    answer_report,
    answer_usage,
    arguments_json,
    local_receipt,
)
from edgesdk.tools.calls import ToolCall

_STOP_REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "content_filter": "refusal"}


class AnthropicAnswer:
    """Implements `ResponseBuilder` for `/v1/messages`.

    A block is open while its deltas come; the next one, or the end, closes it.
    """

    def __init__(self, metadata: ResponseMetadata) -> None:
        self._metadata = metadata
        self._open: str | None = None
        self._num_blocks = 0
        self._called = False

    def first_chunks(self) -> list[Json]:
        usage = {"input_tokens": self._metadata.prompt_tokens, "output_tokens": 0}
        message = self._message([], None, None) | {"usage": usage}
        return [{"type": "message_start", "message": message}]

    def part_chunks(self, part: ResponsePart, steps: list[Step]) -> list[Json]:
        if isinstance(part, ToolCall):
            self._called = True
            block = {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": arguments_json(part)}
            return [*self._close(), *self._start(block), self._delta(delta), *self._close()]
        if isinstance(part, Restart):
            # `StreamBuffer` ends an answer that would need it.
            return []
        if isinstance(part, ReasoningDelta):
            opened = self._opened({"type": "thinking", "thinking": "", "signature": ""})
            return [*opened, self._delta({"type": "thinking_delta", "thinking": part.text})]
        opened = self._opened({"type": "text", "text": ""})
        return [*opened, self._delta({"type": "text_delta", "text": part})]

    def last_chunks(self, reply: AnswerReply) -> list[Json]:
        reason, text = self._stop_reason(reply, calls=self._called)
        delta = {"stop_reason": reason, "stop_sequence": text}
        ended = {"type": "message_delta", "delta": delta, "usage": _usage(reply)}
        return [*self._close(), ended | answer_report(reply), {"type": "message_stop"}]

    def usage_chunk(self, reply: AnswerReply) -> None:
        return None

    def complete(self, steps: list[Step], parts: list[ResponsePart], reply: AnswerReply) -> Json:
        content: list[Json] = []
        if reasoning := answer_reasoning(reply):
            content.append({"type": "thinking", "thinking": reasoning, "signature": ""})
        text = "".join(part for part in parts if isinstance(part, str))
        if text:
            content.append({"type": "text", "text": text})
        calls = [part for part in parts if isinstance(part, ToolCall)]
        content += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}
            for call in calls
        ]
        message = self._message(content, *self._stop_reason(reply, calls=bool(calls)))
        return message | {"usage": _usage(reply)} | answer_report(reply)

    def error_chunk(self, error: ApiError) -> Json:
        return wire_format_of("/messages").error_body(error)

    def _message(self, content: list[Json], reason: str | None, text: str | None) -> Json:
        return {
            "id": f"msg_{self._metadata.key}",
            "type": "message",
            "role": "assistant",
            "model": self._metadata.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": text,
        }

    def _opened(self, block: Json) -> list[Json]:
        return [] if self._open == block["type"] else [*self._close(), *self._start(block)]

    def _start(self, block: Json) -> list[Json]:
        self._open = block["type"]
        return [{"type": "content_block_start", "index": self._num_blocks, "content_block": block}]

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._num_blocks, "delta": delta}

    def _close(self) -> list[Json]:
        if self._open is None:
            return []
        self._open = None
        index, self._num_blocks = self._num_blocks, self._num_blocks + 1
        return [{"type": "content_block_stop", "index": index}]

    def _stop_reason(self, reply: AnswerReply, *, calls: bool) -> tuple[str, str | None]:
        """Why the answer ended, in Anthropic's words, and the stop sequence that ended it."""
        if calls:
            return "tool_use", None
        receipt = local_receipt(reply)
        if receipt is not None and receipt.stop_text is not None:
            return "stop_sequence", receipt.stop_text
        reason = reply.finish_reason
        return _STOP_REASONS.get("stop" if reason == "tool_calls" else reason, "max_tokens"), None


def _usage(reply: AnswerReply) -> Json:
    """Tokens as Anthropic counts them: those of the prompt that a KV cache held are apart."""
    usage = answer_usage(reply) or {"prompt_tokens": 0, "completion_tokens": 0}
    cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "output_tokens": usage["completion_tokens"],
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
    }
