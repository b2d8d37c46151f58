"""How tools and their results are told to a model: through its chat template where it knows them.

A template that knows no tools gets them in the system message, in the words of Hermes function
calling (Nous Research), which small instruction-tuned models follow best.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgesdk.errors import TemplateError
from edgesdk.text.template import ChatTemplate
from edgesdk.tools.calls import ToolCall

_SYSTEM = """You may call functions to answer the user. They are listed in <tools></tools>:
<tools>
{specs}
</tools>
To call one, answer with only this, one for each call:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>
The results come in <tool_response></tool_response>; then answer the user in words."""


@dataclass(frozen=True)
class Dialect:
    """What one chat template writes.

    Attributes:
        tools: the tools that it is given.
        calls: the calls of an assistant's message, also several.
        results: messages of the role "tool".
    """

    tools: bool
    calls: bool
    results: bool

    def conversation(
        self, messages: list[dict[str, Any]], specs: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The messages as the template is to be given them."""
        if self.tools:
            return messages
        told = _SYSTEM.format(specs="\n".join(json.dumps(spec["function"]) for spec in specs))
        if messages and messages[0]["role"] == "system":
            first, *others = messages
            return [{**first, "content": f"{first['content']}\n\n{told}"}, *others]
        return [{"role": "system", "content": told}, *messages]

    def answer(self, text: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
        """The assistant's message that made `calls`.

        In the template's own writing where it has one, because that is what the model learned,
        in whatever form it wrote them this time.
        """
        if not self.calls or any(call.problem for call in calls):
            return {"role": "assistant", "content": text}
        before, tag, _ = text.partition("<tool_call>")
        return {
            "role": "assistant",
            "content": before.strip() if tag else "",
            "tool_calls": [_written(call, place) for place, call in enumerate(calls)],
        }

    def told(self, done: Sequence[tuple[ToolCall, str]]) -> list[dict[str, Any]]:
        """The messages that tell the model what its calls gave."""
        if self.results:
            return [
                {"role": "tool", "name": call.name, "tool_call_id": _id(place), "content": text}
                for place, (call, text) in enumerate(done)
            ]
        blocks = [f"<tool_response>\n{text}\n</tool_response>" for _, text in done]
        return [{"role": "user", "content": "\n".join(blocks)}]


def dialect_of(template: ChatTemplate | None) -> Dialect:
    """What a template writes, found out by trying; without a template, nothing."""
    if template is None:
        return Dialect(tools=False, calls=False, results=False)
    asked = {"role": "user", "content": "?"}
    calls = [ToolCall("probe_one", {}), ToolCall("probe_two", {})]
    spec = {"name": "probe_one", "description": "", "parameters": {"type": "object"}}
    full = Dialect(tools=True, calls=True, results=True)
    results = full.told([(calls[0], "result_one")])
    if not _writes(template, [asked], "probe_one", tools=[{"type": "function", "function": spec}]):
        # It may write any role, but its model was not trained on those of tools.
        return Dialect(tools=False, calls=False, results=False)
    return Dialect(
        tools=True,
        calls=_writes(
            template, [asked, full.answer("", calls), *results], "probe_one", "probe_two"
        ),
        results=_writes(template, [asked, full.answer("", calls[:1]), *results], "result_one"),
    )


def _writes(
    template: ChatTemplate,
    messages: list[dict[str, Any]],
    *marks: str,
    tools: list[dict[str, Any]] | None = None,
) -> bool:
    try:
        text = template.render(messages, tools=tools, bos_token="", eos_token="")
    except TemplateError:
        return False
    return all(mark in text for mark in marks)


def _written(call: ToolCall, place: int) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": _id(place), "type": "function", "function": function}


def _id(place: int) -> str:
    # Mistral's templates insist on nine characters.
    return f"call{place:05d}"
