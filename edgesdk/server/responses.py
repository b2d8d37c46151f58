"""Builds answers as OpenAI's API has them, with the field `edgesdk` that says who answered."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from edgesdk.generation.loop import Finish, Step
from edgesdk.hybrid.reply import HybridReply
from edgesdk.server.callable_tools import CheckedCall
from edgesdk.server.model_sources import ModelInfo
from edgesdk.server.tool_call_reader import AnswerPart
from edgesdk.text.tokenizer import Tokenizer

Json = dict[str, Any]

# JSON has no -inf; this is what OpenAI gives for a token that is next to impossible.
_MIN_LOGPROB = -9999.0


class ResponseBuilder(Protocol):
    """How one endpoint words an answer."""

    def opening(self) -> list[Json]:
        """Chunks before the first part."""

    def chunks(self, steps: list[Step], part: AnswerPart) -> list[Json]:
        """A part of the answer, and the `steps` since the last one."""

    def closing(self, finish: Finish) -> Json:
        """The chunk that says why the answer ended."""

    def usage_chunk(self, finish: Finish) -> Json:
        """The chunk that counts tokens."""

    def whole(self, steps: list[Step], parts: list[AnswerPart], finish: Finish) -> Json:
        """All of the answer at once."""


@dataclass(frozen=True)
class ResponseMetadata:
    """What all chunks of an answer share.

    Attributes:
        usage_follows: each chunk of the stream then has a `usage`, null except in the last.
    """

    model: str
    engine: str | None
    tokenizer: Tokenizer
    logprobs: bool
    usage_follows: bool
    created: int = field(default_factory=lambda: int(time.time()))
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def around(self, prefix: str, kind: str, choices: list[Json]) -> Json:
        """The object around `choices`."""
        return {
            "id": f"{prefix}-{self.key}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.engine,
            "choices": choices,
        }

    def text_of(self, token: int) -> str:
        """A token by itself, for people."""
        return self.tokenizer.token_bytes(token).decode("utf-8", "replace")


class ChatResponseBuilder:
    """Implements `ResponseBuilder` for `/v1/chat/completions`.

    Args:
        may_call: whether the answer may be calls of tools instead of text.
    """

    def __init__(self, metadata: ResponseMetadata, *, may_call: bool = False) -> None:
        self._metadata = metadata
        self._may_call = may_call
        self._calls = 0

    def opening(self) -> list[Json]:
        content = None if self._may_call else ""
        return [self._chunk({"role": "assistant", "content": content}, None)]

    def chunks(self, steps: list[Step], part: AnswerPart) -> list[Json]:
        if isinstance(part, str):
            return [self._chunk({"content": part}, None, steps)]
        index, self._calls = self._calls, self._calls + 1
        begun = {"index": index, **call_entry(part, arguments="")}
        arguments = {"index": index, "function": {"arguments": part.arguments}}
        return [
            self._chunk({"tool_calls": [begun]}, None, steps),
            self._chunk({"tool_calls": [arguments]}, None),
        ]

    def closing(self, finish: Finish) -> Json:
        return self._chunk({}, self._reason(finish))

    def usage_chunk(self, finish: Finish) -> Json:
        body = self._metadata.around("chatcmpl", "chat.completion.chunk", [])
        return body | {"usage": usage(finish)}

    def whole(self, steps: list[Step], parts: list[AnswerPart], finish: Finish) -> Json:
        text = "".join(part for part in parts if isinstance(part, str))
        calls = [
            call_entry(part, part.arguments) for part in parts if isinstance(part, CheckedCall)
        ]
        self._calls = len(calls)
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": self._reason(finish),
            "logprobs": self._logprobs(steps),
        }
        body = self._metadata.around("chatcmpl", "chat.completion", [choice])
        return body | {"usage": usage(finish)}

    def _reason(self, finish: Finish) -> str:
        reason = finish_reason(finish)
        return "tool_calls" if self._calls and reason == "stop" else reason

    def _chunk(self, delta: Json, reason: str | None, steps: Iterable[Step] = ()) -> Json:
        choice: Json = {"index": 0, "delta": delta, "finish_reason": reason}
        choice["logprobs"] = self._logprobs(steps)
        body = self._metadata.around("chatcmpl", "chat.completion.chunk", [choice])
        return body | ({"usage": None} if self._metadata.usage_follows else {})

    def _logprobs(self, steps: Iterable[Step]) -> Json | None:
        entries = [
            self._entry(step.token, step.logprob)
            | {"top_logprobs": [self._entry(*likely) for likely in step.likeliest]}
            for step in steps
            if step.token is not None and step.logprob is not None
        ]
        return (
            {"content": entries, "refusal": None} if self._metadata.logprobs and entries else None
        )

    def _entry(self, token: int, logprob: float) -> Json:
        return {
            "token": self._metadata.text_of(token),
            "logprob": max(logprob, _MIN_LOGPROB),
            "bytes": list(self._metadata.tokenizer.token_bytes(token)),
        }


class CompletionResponseBuilder:
    """Implements `ResponseBuilder` for `/v1/completions`."""

    def __init__(self, metadata: ResponseMetadata) -> None:
        self._metadata = metadata
        self._offset = 0

    def opening(self) -> list[Json]:
        return []

    def chunks(self, steps: list[Step], part: AnswerPart) -> list[Json]:
        return [self._chunk(str(part), None, steps)]

    def closing(self, finish: Finish) -> Json:
        return self._chunk("", finish_reason(finish), [])

    def usage_chunk(self, finish: Finish) -> Json:
        return self._metadata.around("cmpl", "text_completion", []) | {"usage": usage(finish)}

    def whole(self, steps: list[Step], parts: list[AnswerPart], finish: Finish) -> Json:
        text = "".join(map(str, parts))
        return self._chunk(text, finish_reason(finish), steps) | {"usage": usage(finish)}

    def _chunk(self, text: str, reason: str | None, steps: list[Step]) -> Json:
        choice = {"index": 0, "text": text, "finish_reason": reason}
        choice["logprobs"] = self._logprobs(steps)
        body = self._metadata.around("cmpl", "text_completion", [choice])
        return body | ({"usage": None} if self._metadata.usage_follows else {})

    def _logprobs(self, steps: list[Step]) -> Json | None:
        if not self._metadata.logprobs:
            return None
        columns: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for step in steps:
            if step.token is None:
                continue
            text = self._metadata.text_of(step.token)
            columns["tokens"].append(text)
            columns["token_logprobs"].append(step.logprob)
            columns["top_logprobs"].append(
                {
                    self._metadata.text_of(token): max(logprob, _MIN_LOGPROB)
                    for token, logprob in step.likeliest
                }
            )
            columns["text_offset"].append(self._offset)
            self._offset += len(text)
        return columns


def call_entry(called: CheckedCall, arguments: str) -> Json:
    """A call in an answer."""
    function = {"name": called.name, "arguments": arguments}
    return {"id": called.id, "type": "function", "function": function}


def usage(finish: Finish) -> Json:
    """Tokens in and out."""
    return {
        "prompt_tokens": finish.prompt_tokens,
        "completion_tokens": len(finish.tokens),
        "total_tokens": finish.prompt_tokens + len(finish.tokens),
        "prompt_tokens_details": {"cached_tokens": finish.cached_tokens},
    }


def finish_reason(finish: Finish) -> Literal["stop", "length"]:
    """OpenAI's word for why an answer ended; one that a deadline ended was cut off too."""
    return "stop" if finish.reason == "stop" else "length"


def model_entry(model_info: ModelInfo) -> Json:
    """A model in the list of models."""
    return {
        "id": model_info.name,
        "object": "model",
        "created": model_info.created,
        "owned_by": "edgesdk",
    }


# OpenAI's words for why an answer ended; all others mean that it was cut short.
_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter"})


class HybridResponseBuilder:
    """Words one answer.

    Args:
        may_call: whether it may be calls of tools instead of text.
    """

    def __init__(self, metadata: ResponseMetadata, *, may_call: bool) -> None:
        self._metadata = metadata
        self._may_call = may_call
        self._calls = 0

    def opening(self) -> Json:
        """The first chunk."""
        return self._chunk({"role": "assistant", "content": None if self._may_call else ""})

    def said(self, part: str | CheckedCall) -> list[Json]:
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
        return self._chunk({}, self._reason(reply)) | {"edgesdk": routing_report(reply)}

    def usage_chunk(self, reply: HybridReply) -> Json:
        """The chunk that counts tokens, after all others."""
        body = self._metadata.around("chatcmpl", "chat.completion.chunk", [])
        return body | {"usage": hybrid_usage(reply), "edgesdk": routing_report(reply)}

    def whole(self, reply: HybridReply, parts: list[str | CheckedCall]) -> Json:
        """All of the answer at once."""
        text = "".join(part for part in parts if isinstance(part, str))
        calls = [
            call_entry(part, part.arguments) for part in parts if isinstance(part, CheckedCall)
        ]
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
        body = self._metadata.around("chatcmpl", "chat.completion", [choice])
        return body | {"usage": hybrid_usage(reply), "edgesdk": routing_report(reply)}

    def _reason(self, reply: HybridReply) -> str:
        if self._calls and reply.finish_reason == "stop":
            return "tool_calls"
        if not self._calls and reply.finish_reason == "tool_calls":
            return "stop"
        return reply.finish_reason if reply.finish_reason in _REASONS else "length"

    def _chunk(self, delta: Json, reason: str | None = None) -> Json:
        choice: Json = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        body = self._metadata.around("chatcmpl", "chat.completion.chunk", [choice])
        return body | ({"usage": None} if self._metadata.usage_follows else {})


def hybrid_usage(reply: HybridReply) -> Json | None:
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


def routing_report(reply: HybridReply) -> Json:
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


def device_only_report(reason: str, finish: Finish, seconds: float) -> Json:
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


def routing_headers(route: str, reason: str | None) -> dict[str, str]:
    """The headers that say who answered, and why as far as that is known."""
    headers = {"x-edgesdk-route": route}
    if reason is not None:
        # Headers hold Latin-1, and one line.
        words = " ".join(reason.split()).encode("latin-1", "replace").decode("latin-1")
        headers["x-edgesdk-reason"] = words
    return headers
