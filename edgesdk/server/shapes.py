"""Answers as OpenAI's API has them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from edgesdk.decode.loop import Finish, Step
from edgesdk.server.calling import Part
from edgesdk.server.sources import Offer
from edgesdk.server.tooling import Called
from edgesdk.text.base import Tokenizer

Json = dict[str, Any]

# JSON has no -inf; this is what OpenAI gives for a token that is next to impossible.
_LEAST_LOGPROB = -9999.0


class Shape(Protocol):
    """How one endpoint words an answer."""

    def opening(self) -> list[Json]:
        """Chunks before the first part."""

    def chunks(self, steps: list[Step], part: Part) -> list[Json]:
        """A part of the answer, and the `steps` since the last one."""

    def closing(self, finish: Finish) -> Json:
        """The chunk that says why the answer ended."""

    def usage_chunk(self, finish: Finish) -> Json:
        """The chunk that counts tokens."""

    def whole(self, steps: list[Step], parts: list[Part], finish: Finish) -> Json:
        """All of the answer at once."""


@dataclass(frozen=True)
class Stamp:
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


class ChatShape:
    """Implements `Shape` for `/v1/chat/completions`.

    Args:
        may_call: whether the answer may be calls of tools instead of text.
    """

    def __init__(self, stamp: Stamp, *, may_call: bool = False) -> None:
        self._stamp = stamp
        self._may_call = may_call
        self._calls = 0

    def opening(self) -> list[Json]:
        content = None if self._may_call else ""
        return [self._chunk({"role": "assistant", "content": content}, None)]

    def chunks(self, steps: list[Step], part: Part) -> list[Json]:
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
        body = self._stamp.around("chatcmpl", "chat.completion.chunk", [])
        return body | {"usage": usage(finish)}

    def whole(self, steps: list[Step], parts: list[Part], finish: Finish) -> Json:
        text = "".join(part for part in parts if isinstance(part, str))
        calls = [call_entry(part, part.arguments) for part in parts if isinstance(part, Called)]
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
        body = self._stamp.around("chatcmpl", "chat.completion", [choice])
        return body | {"usage": usage(finish)}

    def _reason(self, finish: Finish) -> str:
        reason = finish_reason(finish)
        return "tool_calls" if self._calls and reason == "stop" else reason

    def _chunk(self, delta: Json, reason: str | None, steps: Iterable[Step] = ()) -> Json:
        choice: Json = {"index": 0, "delta": delta, "finish_reason": reason}
        choice["logprobs"] = self._logprobs(steps)
        body = self._stamp.around("chatcmpl", "chat.completion.chunk", [choice])
        return body | ({"usage": None} if self._stamp.usage_follows else {})

    def _logprobs(self, steps: Iterable[Step]) -> Json | None:
        entries = [
            self._entry(step.token, step.logprob)
            | {"top_logprobs": [self._entry(*likely) for likely in step.likeliest]}
            for step in steps
            if step.token is not None and step.logprob is not None
        ]
        return {"content": entries, "refusal": None} if self._stamp.logprobs and entries else None

    def _entry(self, token: int, logprob: float) -> Json:
        return {
            "token": self._stamp.text_of(token),
            "logprob": max(logprob, _LEAST_LOGPROB),
            "bytes": list(self._stamp.tokenizer.token_bytes(token)),
        }


class CompletionShape:
    """Implements `Shape` for `/v1/completions`."""

    def __init__(self, stamp: Stamp) -> None:
        self._stamp = stamp
        self._offset = 0

    def opening(self) -> list[Json]:
        return []

    def chunks(self, steps: list[Step], part: Part) -> list[Json]:
        return [self._chunk(str(part), None, steps)]

    def closing(self, finish: Finish) -> Json:
        return self._chunk("", finish_reason(finish), [])

    def usage_chunk(self, finish: Finish) -> Json:
        return self._stamp.around("cmpl", "text_completion", []) | {"usage": usage(finish)}

    def whole(self, steps: list[Step], parts: list[Part], finish: Finish) -> Json:
        text = "".join(map(str, parts))
        return self._chunk(text, finish_reason(finish), steps) | {"usage": usage(finish)}

    def _chunk(self, text: str, reason: str | None, steps: list[Step]) -> Json:
        choice = {"index": 0, "text": text, "finish_reason": reason}
        choice["logprobs"] = self._logprobs(steps)
        body = self._stamp.around("cmpl", "text_completion", [choice])
        return body | ({"usage": None} if self._stamp.usage_follows else {})

    def _logprobs(self, steps: list[Step]) -> Json | None:
        if not self._stamp.logprobs:
            return None
        columns: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for step in steps:
            if step.token is None:
                continue
            text = self._stamp.text_of(step.token)
            columns["tokens"].append(text)
            columns["token_logprobs"].append(step.logprob)
            columns["top_logprobs"].append(
                {
                    self._stamp.text_of(token): max(logprob, _LEAST_LOGPROB)
                    for token, logprob in step.likeliest
                }
            )
            columns["text_offset"].append(self._offset)
            self._offset += len(text)
        return columns


def call_entry(called: Called, arguments: str) -> Json:
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


def model_entry(offer: Offer) -> Json:
    """A model in the list of models."""
    return {
        "id": offer.name,
        "object": "model",
        "created": offer.created,
        "owned_by": "edgesdk",
    }
