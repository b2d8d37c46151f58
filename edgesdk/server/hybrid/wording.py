"""Hybrid answers as OpenAI's API has them, and what is said besides: who answered, and why."""

from __future__ import annotations

from edgesdk.decode.loop import Finish
from edgesdk.hybrid.reply import HybridReply
from edgesdk.server.shapes import Json, Stamp, call_entry
from edgesdk.server.tooling import Called

# OpenAI's words for why an answer ended; all others mean that it was cut short.
_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter"})


class HybridShape:
    """Words one answer.

    Args:
        may_call: whether it may be calls of tools instead of text.
    """

    def __init__(self, stamp: Stamp, *, may_call: bool) -> None:
        self._stamp = stamp
        self._may_call = may_call
        self._calls = 0

    def opening(self) -> Json:
        """The first chunk."""
        return self._chunk({"role": "assistant", "content": None if self._may_call else ""})

    def said(self, part: str | Called) -> list[Json]:
        """A part of the answer."""
        if isinstance(part, str):
            return [self._chunk({"content": part})]
        index, self._calls = self._calls, self._calls + 1
        begun = {"index": index, **call_entry(part, arguments="")}
        arguments = {"index": index, "function": {"arguments": part.arguments}}
        return [self._chunk({"tool_calls": [each]}) for each in (begun, arguments)]

    def thought(self, text: str) -> Json:
        """A part of what the cloud's model thinks."""
        return self._chunk({"reasoning_content": text})

    def restart(self, reason: str) -> Json:
        """All before it is void."""
        self._calls = 0
        return self._chunk({}) | {"edgesdk": {"restart": reason}}

    def closing(self, reply: HybridReply) -> Json:
        """The chunk that says why the answer ended, and where it came from."""
        return self._chunk({}, self._reason(reply)) | {"edgesdk": report_of(reply)}

    def usage_chunk(self, reply: HybridReply) -> Json:
        """The chunk that counts tokens, after all others."""
        body = self._stamp.around("chatcmpl", "chat.completion.chunk", [])
        return body | {"usage": usage_of(reply), "edgesdk": report_of(reply)}

    def whole(self, reply: HybridReply, parts: list[str | Called]) -> Json:
        """All of the answer at once."""
        text = "".join(part for part in parts if isinstance(part, str))
        calls = [call_entry(part, part.arguments) for part in parts if isinstance(part, Called)]
        self._calls = len(calls)
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": self._reason(reply),
            "logprobs": None,
        }
        body = self._stamp.around("chatcmpl", "chat.completion", [choice])
        return body | {"usage": usage_of(reply), "edgesdk": report_of(reply)}

    def _reason(self, reply: HybridReply) -> str:
        if self._calls and reply.finish_reason == "stop":
            return "tool_calls"
        if not self._calls and reply.finish_reason == "tool_calls":
            return "stop"
        return reply.finish_reason if reply.finish_reason in _REASONS else "length"

    def _chunk(self, delta: Json, reason: str | None = None) -> Json:
        choice: Json = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        body = self._stamp.around("chatcmpl", "chat.completion.chunk", [choice])
        return body | ({"usage": None} if self._stamp.usage_follows else {})


def usage_of(reply: HybridReply) -> Json | None:
    """Tokens as the one who answered counts them; None where it does not."""
    receipt = reply.receipt
    if receipt.prompt_tokens is None or receipt.output_tokens is None:
        return None
    found: Json = {
        "prompt_tokens": receipt.prompt_tokens,
        "completion_tokens": receipt.output_tokens,
        "total_tokens": receipt.prompt_tokens + receipt.output_tokens,
    }
    if receipt.cached_tokens is not None:
        found["prompt_tokens_details"] = {"cached_tokens": receipt.cached_tokens}
    return found


def report_of(reply: HybridReply) -> Json:
    """The field `edgesdk` of an answer."""
    receipt = reply.receipt
    return {
        "route": receipt.route,
        "reason": receipt.reason,
        "confidence": receipt.confidence,
        "low_confidence": receipt.low_confidence,
        "cost": {"money": receipt.cost.money, "tokens": receipt.cost.tokens},
        "endpoint": receipt.endpoint,
        "whole": receipt.finish_reason not in ("incomplete", "deadline"),
        "seconds": receipt.seconds,
    }


def report_of_device(reason: str, finish: Finish, seconds: float) -> Json:
    """The same of an answer of the device that nobody judged, because nobody else can give it."""
    return {
        "route": "local",
        "reason": reason,
        "confidence": None,
        "low_confidence": False,
        "cost": {"money": 0.0, "tokens": 0},
        "endpoint": None,
        "whole": finish.reason != "deadline",
        "seconds": seconds,
    }


def headers_of(route: str, reason: str | None) -> dict[str, str]:
    """The headers that say who answered, and why as far as that is known."""
    headers = {"x-edgesdk-route": route}
    if reason is not None:
        # Headers hold Latin-1, and one line.
        words = " ".join(reason.split()).encode("latin-1", "replace").decode("latin-1")
        headers["x-edgesdk-reason"] = words
    return headers
