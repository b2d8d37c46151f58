"""How tools and their results are told to a model: through its chat template where it knows them.

A template that knows no tools gets them in the system message, in the words of Hermes function
calling (Nous Research), which small instruction-tuned models follow best.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    """What one chat template knows.

    Attributes:
        takes_tools: it writes the tools that it is given.
        has_tool_role: it writes messages of the role "tool".
    """

    takes_tools: bool
    has_tool_role: bool

    def messages(
        self, messages: list[dict[str, Any]], specs: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The conversation as the template is to be given it."""
        if self.takes_tools:
            return messages
        told = _SYSTEM.format(specs="\n".join(json.dumps(spec["function"]) for spec in specs))
        if messages and messages[0]["role"] == "system":
            first, *others = messages
            return [{**first, "content": f"{first['content']}\n\n{told}"}, *others]
        return [{"role": "system", "content": told}, *messages]

    def results(self, done: Sequence[tuple[ToolCall, str]]) -> list[dict[str, Any]]:
        """The messages that tell the model what its calls gave."""
        if self.has_tool_role:
            return [{"role": "tool", "name": call.name, "content": text} for call, text in done]
        blocks = [f"<tool_response>\n{text}\n</tool_response>" for _, text in done]
        return [{"role": "user", "content": "\n".join(blocks)}]


def dialect_of(template: ChatTemplate | None) -> Dialect:
    """What the template's own text says; without a template, nothing."""
    source = "" if template is None else template.source
    return Dialect("tools" in source, "'tool'" in source or '"tool"' in source)
