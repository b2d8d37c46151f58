"""A cloud on a real socket that answers by what it was sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from support.scripted_server import HEAD, Script, ScriptedServer, chunk, event, usage

from edgesdk.hybrid.cloud.endpoint import Cloud

Answers = Callable[[dict[str, Any]], Script]


class TalkingCloud(ScriptedServer):
    """Answers each request by a function of its body. Use it in a `with` block."""

    def __init__(self, answers: Answers) -> None:
        super().__init__([[]])
        self._answers = answers

    def answer_to(self, request: bytes) -> Script:
        return self._answers(json.loads(request.partition(b"\r\n\r\n")[2]))

    def cloud(self, **changes: Any) -> Cloud:
        return Cloud(self.url, "big", "sk-key", **changes)

    def sent(self) -> bytes:
        """Every byte that came."""
        return b"\n".join(self.requests)


def said(*texts: str, finish: str = "stop", **delta: Any) -> Script:
    """A whole answer of these pieces; `delta` is in its first chunk."""
    first = [chunk(**delta)] if delta else []
    pieces = [chunk(text) for text in texts]
    counts = usage(3, max(len(texts), 1))
    return [HEAD, *first, *pieces, chunk(finish=finish), counts, event("[DONE]")]


def called(
    *calls: tuple[str, Mapping[str, Any] | str], words: str = "", finish: str = "tool_calls"
) -> Script:
    """An answer that calls tools, each with its arguments cut in two."""
    chunks = [chunk(words)] if words else []
    for index, (name, given) in enumerate(calls):
        text = given if isinstance(given, str) else json.dumps(given)
        half = len(text) // 2
        begun = {"index": index, "id": f"call_{name}_{index}", "type": "function"}
        chunks.append(chunk(tool_calls=[{**begun, "function": {"name": name, "arguments": ""}}]))
        for part in (text[:half], text[half:]):
            chunks.append(chunk(tool_calls=[{"index": index, "function": {"arguments": part}}]))
    return [HEAD, *chunks, chunk(finish=finish), usage(3, 9), event("[DONE]")]


def last(body: Mapping[str, Any]) -> str:
    """The text of the last message."""
    return str(body["messages"][-1]["content"])


def echo(body: dict[str, Any]) -> Script:
    """Says the last message again, three characters at a time."""
    text = last(body)
    return said(*(text[at : at + 3] for at in range(0, len(text), 3)))
