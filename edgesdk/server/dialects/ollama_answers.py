"""Builds answers as Ollama's API has them, whole or as lines of JSON."""

from __future__ import annotations

from datetime import datetime, timezone

from edgesdk.generation.loop import Step
from edgesdk.hybrid.cloud.cloud_reply import ReasoningDelta, Restart
from edgesdk.server.api_errors import ApiError
from edgesdk.server.responses import (
    AnswerReply,
    Json,
    ResponseMetadata,
    ResponsePart,
    answer_reasoning,
    answer_report,
    answer_usage,
    local_receipt,
)
from edgesdk.tools.calls import ToolCall


class OllamaAnswer:
    """Implements `ResponseBuilder` for `/api/chat` and `/api/generate`.

    Args:
        chats: whether an answer is a message, or a text.
    """

    def __init__(self, metadata: ResponseMetadata, *, chats: bool) -> None:
        self._metadata = metadata
        self._chats = chats

    def first_chunks(self) -> list[Json]:
        return []

    def part_chunks(self, part: ResponsePart, steps: list[Step]) -> list[Json]:
        if isinstance(part, Restart):
            # `StreamBuffer` ends an answer that would need it.
            return []
        if isinstance(part, ReasoningDelta):
            return [self._chunk("", thinking=part.text)]
        if isinstance(part, ToolCall):
            return [self._chunk("", tool_calls=[_call(part, 0)])]
        return [self._chunk(part)]

    def last_chunks(self, reply: AnswerReply) -> list[Json]:
        return [self._chunk("") | _ended(reply)]

    def usage_chunk(self, reply: AnswerReply) -> None:
        return None

    def complete(self, steps: list[Step], parts: list[ResponsePart], reply: AnswerReply) -> Json:
        calls = [part for part in parts if isinstance(part, ToolCall)]
        more: Json = {}
        if reasoning := answer_reasoning(reply):
            more["thinking"] = reasoning
        if calls:
            more["tool_calls"] = [_call(call, index) for index, call in enumerate(calls)]
        text = "".join(part for part in parts if isinstance(part, str))
        return self._chunk(text, **more) | _ended(reply)

    def error_chunk(self, error: ApiError) -> Json:
        return {"error": error.message}

    def _chunk(self, text: str, **more: object) -> Json:
        said: Json = {"response": text, **more}
        if self._chats:
            said = {"message": {"role": "assistant", "content": text, **more}}
        return {"model": self._metadata.model, "created_at": now(), **said, "done": False}


def now() -> str:
    """The time as Ollama writes it."""
    return as_time(datetime.now(timezone.utc).timestamp())


def as_time(seconds: float) -> str:
    """Seconds since 1970 as Ollama writes them."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


def _call(call: ToolCall, index: int) -> Json:
    function = {"index": index, "name": call.name, "arguments": call.arguments}
    return {"id": call.id, "function": function}


def _ended(reply: AnswerReply) -> Json:
    """What the last chunk has: why the answer ended, tokens, and times in nanoseconds."""
    cut = reply.finish_reason not in ("stop", "tool_calls")
    ended: Json = {"done": True, "done_reason": "length" if cut else "stop"}
    usage = answer_usage(reply)
    if usage is not None:
        ended["prompt_eval_count"] = usage["prompt_tokens"]
        ended["eval_count"] = usage["completion_tokens"]
    receipt = local_receipt(reply)
    if receipt is not None:
        seconds = {
            "total_duration": (receipt.time_to_first_token or 0.0) + receipt.decode_seconds,
            "load_duration": receipt.load_seconds,
            "prompt_eval_duration": receipt.prefill_seconds,
            "eval_duration": receipt.decode_seconds,
        }
        ended |= {name: int(1e9 * value) for name, value in seconds.items()}
    return ended | answer_report(reply)
