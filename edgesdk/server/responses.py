"""Builds answers as OpenAI's API has them, with the field `edgesdk` that says who answered."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeAlias

from edgesdk.generation.loop import Step
from edgesdk.hybrid.cloud.cloud_reply import Restart
from edgesdk.hybrid.reply import HybridReply
from edgesdk.receipt import Receipt
from edgesdk.reply import ReasoningDelta, Reply
from edgesdk.server.api_errors import ApiError
from edgesdk.server.callable_tools import AnswerPart
from edgesdk.server.model_source import ModelInfo
from edgesdk.text.tokenizer import Tokenizer
from edgesdk.tools.calls import ToolCall

Json = dict[str, Any]
AnswerReply: TypeAlias = Reply | HybridReply
ResponsePart: TypeAlias = AnswerPart | ReasoningDelta | Restart

# JSON has no -inf; this is what OpenAI gives for a token that is next to impossible.
_MIN_LOGPROB = -9999.0
ROUTE_HEADER, REASON_HEADER = "x-edgesdk-route", "x-edgesdk-reason"
# OpenAI's words for why an answer ended; all others mean that it was cut short.
_FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter"})


@dataclass(frozen=True)
class ResponseMetadata:
    """What all chunks of an answer share.

    Attributes:
        engine: None where a cloud may answer.
        logprobs: whether the answer lists the log-probabilities of its tokens.
        may_call: whether the answer may be calls of tools instead of text.
        usage_follows: each chunk of the stream then has a `usage`, null except in the last.
        index: of the answer among those of its request.
        key: of the request.
        prompt_tokens: how many tokens of the device's model the prompt has.
    """

    model: str
    engine: str | None
    tokenizer: Tokenizer
    logprobs: bool = False
    may_call: bool = False
    usage_follows: bool = False
    prompt_tokens: int = 0
    index: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def text_of(self, token: int) -> str:
        """A token by itself, for people."""
        return self.tokenizer.token_bytes(token).decode("utf-8", "replace")


class ResponseBuilder(Protocol):
    """Builds one answer of one API, in chunks or as a whole."""

    def first_chunks(self) -> list[Json]:
        """The chunks before the first part."""

    def part_chunks(self, part: ResponsePart, steps: list[Step]) -> list[Json]:
        """The chunks of a part of the answer, and of the device's `steps` since the last one."""

    def last_chunks(self, reply: AnswerReply) -> list[Json]:
        """The chunks that say why the answer ended."""

    def usage_chunk(self, reply: AnswerReply) -> Json | None:
        """The chunk that counts tokens, after all others; None where none is to come."""

    def complete(self, steps: list[Step], parts: list[ResponsePart], reply: AnswerReply) -> Json:
        """All of the answer at once."""

    def error_chunk(self, error: ApiError) -> Json:
        """The chunk that ends a stream where an error does."""


class OpenAiBuilder(ABC):
    """What answers of OpenAI's two completion endpoints share."""

    _id_prefix: str
    _object: str
    _chunk_object: str

    def __init__(self, metadata: ResponseMetadata) -> None:
        self._metadata = metadata

    @abstractmethod
    def last_chunks(self, reply: AnswerReply) -> list[Json]:
        """The chunks that say why the answer ended."""

    def usage_chunk(self, reply: AnswerReply) -> Json | None:
        if not self._metadata.usage_follows:
            return None
        usage = {"usage": answer_usage(reply)}
        counts = usage | answer_report(reply) | answer_timings(reply)
        return self._body(self._chunk_object, []) | counts

    def error_chunk(self, error: ApiError) -> Json:
        return error.body()

    def _body(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": f"{self._id_prefix}-{self._metadata.key}",
            "object": kind,
            "created": self._metadata.created,
            "model": self._metadata.model,
            "system_fingerprint": self._metadata.engine,
            "choices": choices,
        }

    def _chunk(self, choice: Json) -> Json:
        body = self._body(self._chunk_object, [choice])
        return body | ({"usage": None} if self._metadata.usage_follows else {})

    def _complete(self, choice: Json, reply: AnswerReply) -> Json:
        shown = {"usage": answer_usage(reply)} | answer_report(reply) | answer_timings(reply)
        return self._body(self._object, [choice]) | shown


class ChatResponseBuilder(OpenAiBuilder):
    """Implements `ResponseBuilder` for an answer of `/v1/chat/completions`."""

    _id_prefix = "chatcmpl"
    _object = "chat.completion"
    _chunk_object = "chat.completion.chunk"

    _num_calls = 0

    def first_chunks(self) -> list[Json]:
        content = None if self._metadata.may_call else ""
        return [self._delta({"role": "assistant", "content": content})]

    def part_chunks(self, part: ResponsePart, steps: list[Step]) -> list[Json]:
        if isinstance(part, str):
            return [self._delta({"content": part}, steps=steps)]
        if isinstance(part, ReasoningDelta):
            return [self._delta({"reasoning_content": part.text})]
        if isinstance(part, Restart):
            self._num_calls = 0
            return [self._delta({}) | {"edgesdk": {"restart": part.reason}}]
        index, self._num_calls = self._num_calls, self._num_calls + 1
        opened = {"index": index, **_call_entry(part, arguments="")}
        arguments = {"index": index, "function": {"arguments": arguments_json(part)}}
        return [
            self._delta({"tool_calls": [opened]}, steps=steps),
            self._delta({"tool_calls": [arguments]}),
        ]

    def last_chunks(self, reply: AnswerReply) -> list[Json]:
        reason = _finish_reason(reply, calls=self._num_calls > 0)
        return [self._delta({}, reason) | answer_report(reply) | answer_timings(reply)]

    def complete(self, steps: list[Step], parts: list[ResponsePart], reply: AnswerReply) -> Json:
        text = "".join(part for part in parts if isinstance(part, str))
        calls = [_call_entry(p, arguments_json(p)) for p in parts if isinstance(p, ToolCall)]
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if reasoning := answer_reasoning(reply):
            message["reasoning_content"] = reasoning
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        choice = {
            "index": self._metadata.index,
            "message": message,
            "finish_reason": _finish_reason(reply, calls=bool(calls)),
            "logprobs": self._logprobs(steps),
        }
        return self._complete(choice, reply)

    def _delta(self, delta: Json, reason: str | None = None, steps: Iterable[Step] = ()) -> Json:
        choice: Json = {"index": self._metadata.index, "delta": delta, "finish_reason": reason}
        choice["logprobs"] = self._logprobs(steps)
        return self._chunk(choice)

    def _logprobs(self, steps: Iterable[Step]) -> Json | None:
        if not self._metadata.logprobs:
            return None
        entries = [
            self._logprob_entry(step.token, step.logprob)
            | {"top_logprobs": [self._logprob_entry(*likely) for likely in step.likeliest]}
            for step in steps
            # Reasoning is no content.
            if step.token is not None and step.logprob is not None and step.reasoning is None
        ]
        return {"content": entries, "refusal": None} if entries else None

    def _logprob_entry(self, token: int, logprob: float) -> Json:
        return {
            "token": self._metadata.text_of(token),
            "logprob": max(logprob, _MIN_LOGPROB),
            "bytes": list(self._metadata.tokenizer.token_bytes(token)),
        }


class CompletionResponseBuilder(OpenAiBuilder):
    """Implements `ResponseBuilder` for an answer of `/v1/completions`."""

    _id_prefix = "cmpl"
    _object = _chunk_object = "text_completion"

    _text_offset = 0

    def first_chunks(self) -> list[Json]:
        return []

    def part_chunks(self, part: ResponsePart, steps: list[Step]) -> list[Json]:
        assert isinstance(part, str), "a completion has nothing but text"
        return [self._chunk(self._choice(part, None, steps))]

    def last_chunks(self, reply: AnswerReply) -> list[Json]:
        reason = _finish_reason(reply, calls=False)
        chunk = self._chunk(self._choice("", reason, []))
        return [chunk | answer_report(reply) | answer_timings(reply)]

    def complete(self, steps: list[Step], parts: list[ResponsePart], reply: AnswerReply) -> Json:
        reason = _finish_reason(reply, calls=False)
        return self._complete(self._choice("".join(map(str, parts)), reason, steps), reply)

    def _choice(self, text: str, reason: str | None, steps: list[Step]) -> Json:
        choice = {"index": self._metadata.index, "text": text, "finish_reason": reason}
        return choice | {"logprobs": self._logprobs(steps)}

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
            # As OpenAI's, they have the token that was chosen too.
            listed = [*step.likeliest, (step.token, step.logprob or 0.0)]
            likeliest = {
                self._metadata.text_of(token): max(logprob, _MIN_LOGPROB)
                for token, logprob in listed
            }
            # Nothing tells how likely the first token of a prompt is.
            columns["top_logprobs"].append(None if step.logprob is None else likeliest)
            columns["text_offset"].append(self._text_offset)
            self._text_offset += len(text)
        return columns


def merged(bodies: Sequence[Json], *, per_prompt: int) -> Json:
    """One body of the bodies of several answers; each prompt is counted once, and timings, which
    are those of one answer, are left out.

    Args:
        per_prompt: how many of the answers, which follow each other, are to one prompt.
    """
    if len(bodies) == 1:
        return bodies[0]
    usages = [body.get("usage") or {} for body in bodies]
    prompt = sum(usage.get("prompt_tokens", 0) for usage in usages[::per_prompt])
    answers = sum(usage.get("completion_tokens", 0) for usage in usages)
    usage = {"prompt_tokens": prompt, "completion_tokens": answers}
    choices = [choice for body in bodies for choice in body["choices"]]
    total = {"usage": {**usage, "total_tokens": prompt + answers}}
    shared = {key: value for key, value in bodies[0].items() if key != "timings"}
    return {**shared, "choices": choices, **total}


def reply_headers(reply: AnswerReply) -> dict[str, str]:
    """The headers that say who gave an answer; only a server with a cloud has them."""
    return {} if isinstance(reply, Reply) else routing_headers(reply.route, reply.reason)


def routing_headers(route: str, reason: str | None) -> dict[str, str]:
    """The headers that say who answered, and why as far as that is known."""
    headers = {ROUTE_HEADER: route}
    if reason is not None:
        # Headers hold Latin-1, and one line.
        words = " ".join(reason.split()).encode("latin-1", "replace").decode("latin-1")
        headers[REASON_HEADER] = words
    return headers


def model_entry(info: ModelInfo, *, loaded: bool) -> Json:
    """A model in the list of models, with the names that other servers have for its context."""
    return {
        "id": info.name,
        "object": "model",
        "created": info.created,
        "owned_by": "edgesdk",
        "context_length": info.context_length,
        "max_model_len": info.context_length,
        "capabilities": list(info.capabilities),
        "size": info.size,
        "loaded": loaded,
    }


def answer_usage(reply: AnswerReply) -> Json | None:
    """Tokens as the one who answered counts them; None where it does not."""
    receipt = reply.receipt
    if receipt.prompt_tokens is None or receipt.output_tokens is None:
        return None
    usage: Json = {
        "prompt_tokens": receipt.prompt_tokens,
        "completion_tokens": receipt.output_tokens,
        "total_tokens": receipt.prompt_tokens + receipt.output_tokens,
    }
    if receipt.reasoning_tokens:
        usage["completion_tokens_details"] = {"reasoning_tokens": receipt.reasoning_tokens}
    if receipt.cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": receipt.cached_tokens}
    return usage


def answer_reasoning(reply: AnswerReply) -> str:
    """What the one who answered thought before; "" where it did not, or nobody knows."""
    return reply.reasoning


def local_receipt(reply: AnswerReply) -> Receipt | None:
    """The device's receipt, where the answer is the device's."""
    receipt = reply.receipt
    if isinstance(receipt, Receipt):
        return receipt
    return receipt.local if receipt.route == "local" else None


def answer_timings(reply: AnswerReply) -> Json:
    """What the device took, as llama-server says it; nothing where its times say nothing."""
    receipt = local_receipt(reply)
    if receipt is None or receipt.placement.in_software:
        return {}
    computed = receipt.prompt_tokens - receipt.cached_tokens
    timings: Json = {"cache_n": receipt.cached_tokens}
    for name, count, seconds in (
        ("prompt", computed, receipt.prefill_seconds),
        ("predicted", receipt.output_tokens, receipt.decode_seconds),
    ):
        timings |= {
            f"{name}_n": count,
            f"{name}_ms": 1000 * seconds,
            f"{name}_per_token_ms": 1000 * seconds / count if count else None,
            f"{name}_per_second": count / seconds if seconds else None,
        }
    if receipt.drafted_tokens:
        timings |= {"draft_n": receipt.drafted_tokens, "draft_n_accepted": receipt.accepted_tokens}
    return {"timings": timings}


def answer_report(reply: AnswerReply) -> Json:
    """The field `edgesdk`: who answered where there is a cloud, and what ended the answer where
    OpenAI has no word for it."""
    report: Json = {}
    if isinstance(reply, HybridReply):
        receipt = reply.receipt
        report = {
            "route": receipt.route,
            "reason": receipt.reason,
            "confidence": receipt.confidence,
            "low_confidence": receipt.low_confidence,
            "cost": {"money": receipt.cost.money, "tokens": receipt.cost.tokens},
            "endpoint": receipt.endpoint,
            "whole": receipt.complete,
            "seconds": receipt.seconds,
            "failures": [asdict(failure) for failure in receipt.failures],
        }
    elif reply.receipt.generic_tools:
        # The model's chat template knows no tools.
        report["tools"] = "generic"
    if reply.finish_reason not in _FINISH_REASONS:
        report["finish_reason"] = reply.finish_reason
    return {"edgesdk": report} if report else {}


def _finish_reason(reply: AnswerReply, *, calls: bool) -> str:
    """OpenAI's word for why an answer ended; one that a deadline ended was cut short too."""
    reason = reply.finish_reason
    if reason in ("stop", "tool_calls"):
        return "tool_calls" if calls else "stop"
    return reason if reason in _FINISH_REASONS else "length"


def _call_entry(call: ToolCall, arguments: str) -> Json:
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def arguments_json(call: ToolCall) -> str:
    """The arguments of a call as text."""
    return json.dumps(call.arguments, ensure_ascii=False)
