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
from edgesdk.tools.syntax import HERMES, SMOLLM, CallSyntax, learned_syntax

_SYSTEM = """You may call functions to answer the user. They are listed in <tools></tools>:
<tools>
{specs}
</tools>
To call {how}:
{example}
The results come in <tool_response></tool_response>; then answer the user in words."""
_EXAMPLE = '{"name": <function-name>, "arguments": <args-json-object>}'
_WORDS = {
    HERMES: (
        "one, answer with only this, one for each call",
        f"<tool_call>\n{_EXAMPLE}\n</tool_call>",
    ),
    SMOLLM: (
        "them, answer with only this, one list of all calls",
        f"<tool_call>[{_EXAMPLE}]</tool_call>",
    ),
}


@dataclass(frozen=True)
class Dialect:
    """What one chat template writes.

    Attributes:
        tools: the tools that it is given.
        calls: the calls of an assistant's message, also several.
        results: messages of the role "tool".
        syntax: how its model writes calls; None where the template writes them in a way that
            is not JSON, or not at all.
    """

    tools: bool
    calls: bool
    results: bool
    syntax: CallSyntax | None

    def conversation(
        self, messages: list[dict[str, Any]], specs: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The messages as the template is to be given them."""
        if self.tools:
            return messages
        how, example = _WORDS[self.syntax or HERMES]
        listed = "\n".join(json.dumps(spec["function"]) for spec in specs)
        told = _SYSTEM.format(specs=listed, how=how, example=example)
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


_ASKED = {"role": "user", "content": "?"}
_PROBES = (
    ToolCall("probe_one", {"probe_key": "first", "probe_other": 1}, id="prob00001"),
    ToolCall("probe_two", {"probe_key": "second", "probe_other": 2}, id="prob00002"),
)
_SPEC = {
    "name": "probe_one",
    "description": "A probe.",
    "parameters": {
        "type": "object",
        "properties": {"probe_key": {"type": "string", "description": "A key."}},
        "required": ["probe_key"],
    },
}


def dialect_of(template: ChatTemplate | None) -> Dialect:
    """What a template writes, found out by trying; without a template, nothing."""
    if template is None:
        return Dialect(tools=False, calls=False, results=False, syntax=HERMES)
    tools = [{"type": "function", "function": _SPEC}]
    if "probe_one" not in (_rendered(template, [_ASKED], tools=tools) or ""):
        # It may write any role, but its model was not trained on those of tools.
        named = _rendered(template, [_ASKED]) or ""
        own = SMOLLM if "SmolLM" in named else HERMES
        return Dialect(tools=False, calls=False, results=False, syntax=own)
    syntax = learned_syntax(lambda calls: _answered(template, calls), _PROBES)
    full = Dialect(tools=True, calls=True, results=True, syntax=syntax)
    several = [_ASKED, full.answer("", _PROBES), *full.told([(c, "result") for c in _PROBES])]
    one = [_ASKED, full.answer("", _PROBES[:1]), *full.told([(_PROBES[0], "result_one")])]
    return Dialect(
        tools=True,
        calls="probe_two" in (_rendered(template, several) or ""),
        results="result_one" in (_rendered(template, one) or ""),
        syntax=syntax,
    )


def _answered(template: ChatTemplate, calls: Sequence[ToolCall]) -> str | None:
    """What a template writes for an answer that makes `calls`, without what ends any answer."""
    words = "probe_words"
    message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [_written(call, 0) | {"id": call.id} for call in calls],
    }
    prompt = _rendered(template, [_ASKED])
    plain = _rendered(template, [_ASKED, {"role": "assistant", "content": words}], ask=False)
    whole = _rendered(template, [_ASKED, message], ask=False)
    if prompt is None or plain is None or whole is None or not whole.startswith(prompt):
        return None
    ending = plain.rpartition(words)[2]
    return whole[len(prompt) :].removesuffix(ending)


def _rendered(
    template: ChatTemplate,
    messages: list[dict[str, Any]],
    *,
    tools: list[dict[str, Any]] | None = None,
    ask: bool = True,
) -> str | None:
    try:
        return template.render(
            messages, tools=tools, add_generation_prompt=ask, bos_token="", eos_token=""
        )
    except TemplateError:
        return None


def _written(call: ToolCall, place: int) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": _id(place), "type": "function", "function": function}


def _id(place: int) -> str:
    # Mistral's templates insist on nine characters.
    return f"call{place:05d}"
