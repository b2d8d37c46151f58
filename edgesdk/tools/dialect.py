"""How tools and their results are told to a model: through its chat template where it knows them.

A template that knows no tools gets them in the system message, in the words of Hermes function
calling (Nous Research), which small instruction-tuned models follow best.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from edgesdk.errors import TemplateError
from edgesdk.text.template import ChatTemplate
from edgesdk.tools.calls import ToolCall
from edgesdk.tools.messages import Message, call_message, calls_of, result_message
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
        "them, answer with only this, a list of all calls",
        f"<tool_call>[{_EXAMPLE}]</tool_call>",
    ),
}


@dataclass(frozen=True)
class Dialect:
    """What one chat template writes.

    Attributes:
        tools: the tools that it is given.
        calls: how many calls of one assistant's message; 2 stands for any number.
        results: messages of the role "tool".
        syntax: how its model writes calls; None where the template writes them in a way that
            is not read here, or not at all.
    """

    tools: bool
    calls: int
    results: bool
    syntax: CallSyntax | None

    def conversation(
        self, messages: Iterable[Mapping[str, Any]], specs: Sequence[Mapping[str, Any]] = ()
    ) -> list[Message]:
        """The messages as the template is to be given them: in its own writing where it has one,
        because that is what its model learned.

        Args:
            messages: in the form of OpenAI's API.
            specs: tools that may be called, in that form too.

        Raises:
            RequestError: a message has calls that are none.
        """
        told: list[Message] = []
        for is_result, group in groupby(messages, lambda message: message["role"] == "tool"):
            if is_result and not self.results:
                blocks = [f"<tool_response>\n{m.get('content')}\n</tool_response>" for m in group]
                told.append({"role": "user", "content": "\n".join(blocks)})
            else:
                told += [self._called(message) for message in group]
        return self._with_tools(told, specs) if specs and not self.tools else told

    def _called(self, message: Mapping[str, Any]) -> Message:
        calls = calls_of(message)
        if not calls:
            # A key without calls would still make some templates write them.
            return {key: value for key, value in message.items() if key != "tool_calls"}
        content = message.get("content") or ""
        if len(calls) <= self.calls or self.calls > 1:
            return {**message, **call_message(content, calls)}
        written = (self.syntax or HERMES).write(calls)
        return {"role": "assistant", "content": f"{content}\n{written}" if content else written}

    def _with_tools(self, told: list[Message], specs: Sequence[Mapping[str, Any]]) -> list[Message]:
        how, example = _WORDS[self.syntax or HERMES]
        listed = "\n".join(json.dumps(spec["function"], ensure_ascii=False) for spec in specs)
        words = _SYSTEM.format(specs=listed, how=how, example=example)
        if told and told[0]["role"] == "system":
            first, *others = told
            return [{**first, "content": f"{first['content']}\n\n{words}"}, *others]
        return [{"role": "system", "content": words}, *told]


_ASKED = {"role": "user", "content": "?"}
_PROBES = (
    # Mistral's templates insist on ids of nine characters.
    ToolCall("probe_one", {"probe_key": "probe_value", "probe_other": 1}, id="prob00001"),
    ToolCall("probe_two", {"probe_key": "probe_other_value", "probe_other": 2}, id="prob00002"),
)
_PARAMETERS = {
    "type": "object",
    "properties": {"probe_key": {"type": "string", "description": "A key."}},
    "required": ["probe_key"],
}
_SPEC = {"name": "probe_one", "description": "A probe.", "parameters": _PARAMETERS}
_TOOLS = [{"type": "function", "function": _SPEC}]


def dialect_of(template: ChatTemplate | None) -> Dialect:
    """What a template writes, found out by trying; without a template, nothing."""
    if template is None:
        return Dialect(tools=False, calls=0, results=False, syntax=HERMES)
    if "probe_one" not in (_rendered(template, [_ASKED]) or ""):
        # It may write any role, but its model was not trained on those of tools.
        named = _rendered(template, [_ASKED], tools=None) or ""
        own = SMOLLM if "SmolLM" in named else HERMES
        return Dialect(tools=False, calls=0, results=False, syntax=own)
    told = [[result_message(call, f"gave {call.name}") for call in _PROBES[:n]] for n in (1, 2)]
    one, two = (
        _rendered(template, [_ASKED, call_message("", _PROBES[: len(results)]), *results]) or ""
        for results in told
    )
    return Dialect(
        tools=True,
        calls=2 if "probe_other_value" in two else int("probe_value" in one),
        results="gave probe_one" in one,
        syntax=learned_syntax(lambda calls: _answered(template, calls), _PROBES),
    )


def _answered(template: ChatTemplate, calls: Sequence[ToolCall]) -> str | None:
    """What a template writes for an answer that makes `calls`, without what ends any answer."""
    words = "probe_words"
    prompt = _rendered(template, [_ASKED])
    plain = _rendered(template, [_ASKED, {"role": "assistant", "content": words}], ask=False)
    whole = _rendered(template, [_ASKED, call_message("", calls)], ask=False)
    if prompt is None or plain is None or whole is None or not whole.startswith(prompt):
        return None
    ending = plain.rpartition(words)[2]
    return whole[len(prompt) :].removesuffix(ending)


def _rendered(
    template: ChatTemplate,
    messages: list[Message],
    *,
    tools: list[dict[str, Any]] | None = _TOOLS,
    ask: bool = True,
) -> str | None:
    try:
        return template.render(
            messages, tools=tools, add_generation_prompt=ask, bos_token="", eos_token=""
        )
    except TemplateError:
        return None
