"""Builds the request that a cloud is sent; private values are replaced by placeholders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from edgesdk.hybrid.content import is_data, is_media, text_groups, without_reasoning
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.hybrid.request import HybridRequest
from edgesdk.tools.call_messages import calls_of
from edgesdk.tools.tool_set import ToolSet


@dataclass(frozen=True)
class CloudRequest:
    """The body of a request to a cloud, without model and streaming.

    Attributes:
        names: what the tools are really called, by the names in `body` that are others.
    """

    body: dict[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)


def cloud_request(
    hybrid: HybridRequest, *, hide: AbstractSet[str] | None, max_output_tokens: int
) -> CloudRequest:
    """Build the request that a cloud is sent.

    Args:
        hide: kinds of what the conversation's redactor finds that are hidden; None for all.
        max_output_tokens: where the options set no limit.
    """
    request, options = hybrid.request, hybrid.request.options
    hiding = _Redactor(hybrid.redactor, hide)
    body: dict[str, Any] = {
        "messages": hiding.messages(without_reasoning(request.messages)),
        "max_tokens": options.max_tokens or max_output_tokens,
        "temperature": options.temperature,
    }
    if options.top_p is not None and options.top_p < 1:
        body["top_p"] = options.top_p
    if options.seed is not None:
        body["seed"] = options.seed
    if options.stops:
        body["stop"] = [hiding.value(stop) for stop in options.stops]
    if request.tools is not None:
        body |= hiding.tools(request.tools)
    if request.output_format is not None and request.output_format.response_format is not None:
        body["response_format"] = hiding.value(request.output_format.response_format)
    return CloudRequest(body, hiding.names)


def format_tokens(sent: CloudRequest) -> int:
    """Estimate the tokens of the output format, which the prompt does not have: four characters
    make one."""
    found = sent.body.get("response_format")
    return 0 if found is None else len(json.dumps(found)) // 4


class _Redactor:
    """Replaces what is private in the parts of one request by placeholders."""

    def __init__(self, redactor: Redactor, kinds: AbstractSet[str] | None) -> None:
        self._redactor = redactor
        self._kinds = kinds
        self.names: dict[str, str] = {}

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        texts = iter(
            text
            for group in text_groups(messages)
            for text in self._redactor.redact_parts(group, self._kinds)
        )
        return [self._message(message, texts) for message in messages]

    def _message(self, message: Mapping[str, Any], texts: Iterator[str]) -> dict[str, Any]:
        """Redact a message, whose texts are the next of `texts`."""
        calls = calls_of(message)
        plain = {
            key: self._content(item, texts) if key == "content" else self._part(key, item)
            for key, item in message.items()
            if key != "tool_calls"
        }
        written = [
            {
                "id": self._word(call.id),
                "type": "function",
                "function": {
                    "name": self._name(call.name),
                    "arguments": json.dumps(self.value(call.arguments), ensure_ascii=False),
                },
            }
            for call in calls
        ]
        return {**plain, "tool_calls": written} if written else plain

    def tools(self, tools: ToolSet) -> dict[str, Any]:
        specs = []
        for spec in tools.specs:
            function = {key: self._part(key, item) for key, item in spec["function"].items()}
            specs.append({"type": "function", "function": function})
        found: dict[str, Any] = {"tools": specs, "tool_choice": self._chosen(tools.choice)}
        # True is the default, and some endpoints know no such field.
        return found if tools.parallel else {**found, "parallel_tool_calls": False}

    def value(self, value: Any) -> Any:
        """Redact all texts, keys and numbers of a JSON value."""
        return self._redactor.redact_value(value, self._kinds)

    def _content(self, content: Any, texts: Iterator[str]) -> Any:
        """Redact a message's content, whose texts are the next of `texts`."""
        if isinstance(content, str):
            return next(texts)
        if not isinstance(content, Sequence):
            return self.value(content)
        return [self._content_part(part, texts) for part in content]

    def _content_part(self, part: Any, texts: Iterator[str]) -> Any:
        if not isinstance(part, Mapping):
            return next(texts)
        own = {
            key: next(texts)
            for key, item in part.items()
            if key == "text" and isinstance(item, str)
        }
        rest = {key: item for key, item in part.items() if key not in own}
        return {**(self._medium(rest) if is_media(part) else self.value(rest)), **own}

    def _medium(self, value: Any) -> Any:
        """Redact a part that has a picture or a sound; its base64 data stays as it is."""
        if not isinstance(value, Mapping):
            return self.value(value)
        return {
            key: item if is_data(key, item) else self._medium(item) for key, item in value.items()
        }

    def _part(self, key: str, item: Any) -> Any:
        if key == "name" and isinstance(item, str):
            return self._name(item)
        return self._word(item) if key == "tool_call_id" else self.value(item)

    def _name(self, name: str) -> str:
        alias = self._word(name)
        if alias != name:
            self.names[alias] = name
        return alias

    def _word(self, word: str) -> str:
        """Redact a name or an id, in which the API allows no brackets."""
        hidden = str(self.value(word))
        return word if hidden == word else hidden.translate({ord("<"): None, ord(">"): None})

    def _chosen(self, choice: Any) -> Any:
        if isinstance(choice, Mapping):
            return {
                key: self._name(item) if key == "name" else self._chosen(item)
                for key, item in choice.items()
            }
        return [self._chosen(item) for item in choice] if isinstance(choice, list) else choice
