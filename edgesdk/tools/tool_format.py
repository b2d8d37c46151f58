"""Find out how a model's chat template writes tools, calls and results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from edgesdk.errors import TemplateError
from edgesdk.text.template import ChatTemplate
from edgesdk.text.template_text import concat, from_assistant, from_template
from edgesdk.tools.call_messages import Message, call_message, calls_of, result_message
from edgesdk.tools.call_syntax import CallSyntax
from edgesdk.tools.call_table import HERMES, LISTING_TEMPLATES, SMOLLM
from edgesdk.tools.syntax_learning import PROBES, learn_syntax, shared_end, shared_start
from edgesdk.tools.tool_call import ToolCall

_SYSTEM = """You may call functions to answer the user. They are listed in <tools></tools>:
<tools>
{specs}
</tools>
To call {how}:
{example}
The results come in <tool_response></tool_response>; then answer the user in words."""
_RESULT = from_template("<tool_response>\n{}\n</tool_response>")
_OBJECT = '{"name": <function-name>, "arguments": <args-json-object>}'
_WORDS = {
    HERMES: (
        "one, answer with only this, one for each call",
        f"<tool_call>\n{_OBJECT}\n</tool_call>",
    ),
    SMOLLM: (
        "them, answer with only this, a list of all calls",
        f"<tool_call>[{_OBJECT}]</tool_call>",
    ),
}
_EXAMPLE = ToolCall("<function-name>", {"<argument-name>": "<argument-value>"}, id="<call-id>")


@dataclass(frozen=True)
class ToolFormat:
    """What a chat template can write of tools, calls and results.

    Attributes:
        tools: the tools that it is given.
        calls: how many calls of one assistant's message; 2 stands for any number.
        results: messages of the role "tool".
        syntax: how its model writes calls; None where the template writes them in a way that
            is not read here, or not at all.
        json_texts: it wants the arguments of calls as a JSON text.
    """

    tools: bool
    calls: int
    results: bool
    syntax: CallSyntax | None
    json_texts: bool = False

    def conversation(
        self, messages: Iterable[Mapping[str, Any]], specs: Sequence[Mapping[str, Any]] = ()
    ) -> list[Message]:
        """Prepare messages for the template.

        Calls, results and tools are left to the template where it can write them, because that is
        what its model has learned; else they become text.

        Args:
            messages: in the form of OpenAI's API.
            specs: tools that may be called, in that form too.

        Raises:
            RequestError: a message has calls that are none.
        """
        prepared: list[Message] = []
        for is_result, group in groupby(messages, lambda message: message["role"] == "tool"):
            if is_result and not self.results:
                blocks = [_RESULT.replace("{}", str(m.get("content"))) for m in group]
                prepared.append({"role": "user", "content": from_template("\n").join(blocks)})
            else:
                prepared += [self._called(message) for message in group]
        return self._with_tools(prepared, specs) if specs and not self.tools else prepared

    def _called(self, message: Mapping[str, Any]) -> Message:
        calls = calls_of(message)
        if not calls:
            # A key without calls would still make some templates write them.
            return {key: value for key, value in message.items() if key != "tool_calls"}
        content = message.get("content") or ""
        if len(calls) <= self.calls or self.calls > 1:
            written = call_message(content, calls)
            return {**message, **(_with_json_texts(written) if self.json_texts else written)}
        written_text = (self.syntax or HERMES).write(calls)
        words = from_assistant(f"{content}\n" if content else "")
        return {"role": "assistant", "content": concat((words, written_text))}

    def _with_tools(
        self, messages: list[Message], specs: Sequence[Mapping[str, Any]]
    ) -> list[Message]:
        syntax = self.syntax or HERMES
        several = "one or more" if syntax.between is not None else "one"
        how, example = _WORDS.get(syntax) or (
            f"{several}, answer with only this, and write each call in this way",
            syntax.write([_EXAMPLE]).plain,
        )
        listed = "\n".join(json.dumps(spec["function"], ensure_ascii=False) for spec in specs)
        before, after = _SYSTEM.format(specs="{specs}", how=how, example=example).split("{specs}")
        words = concat((from_template(before), listed, from_template(after)))
        if messages and messages[0]["role"] == "system":
            first, *others = messages
            return [{**first, "content": concat((f"{first['content']}\n\n", words))}, *others]
        return [{"role": "system", "content": words}, *messages]


_ASKED = {"role": "user", "content": "probe_question"}
_PARAMETERS = {
    "type": "object",
    "properties": {"probe_key": {"type": "string", "description": "A key."}},
    "required": ["probe_key"],
}
_SPEC = {"name": "probe_one", "description": "A probe.", "parameters": _PARAMETERS}
_TOOLS = [{"type": "function", "function": _SPEC}]
# What a template writes of reasoning that there was none of.
_NO_REASONING = re.compile(r"\A(?:\s*</?(?:\w+:)?think(?:ing)?(?::\w+)?>)+\s*")


def detect_tool_format(template: ChatTemplate | None) -> ToolFormat:
    """Find out what a template can write, by trying it; without a template, nothing."""
    if template is None:
        return ToolFormat(tools=False, calls=0, results=False, syntax=HERMES)
    listed = _rendered(template, [_ASKED]) or ""
    probe = _Probe(template)
    syntax = learn_syntax(probe.written_answer)
    if syntax is None:
        texts = _Probe(template, json_texts=True)
        syntax = learn_syntax(texts.written_answer)
        probe = probe if syntax is None else texts
    if "probe_one" not in listed:
        if syntax is None:
            # It may write any role, but its model was not trained on those of tools.
            syntax = (
                SMOLLM if "SmolLM" in (_rendered(template, [_ASKED], tools=None) or "") else HERMES
            )
            return ToolFormat(tools=False, calls=0, results=False, syntax=syntax)
    elif syntax is None:
        known = (each.syntax for each in LISTING_TEMPLATES if each.mark in template.source)
        syntax = next(known, None)
    one, two = map(probe.with_results, (1, 2))
    return ToolFormat(
        tools="probe_one" in listed,
        calls=2 if "probe_other_value" in two else int("probe_value" in one),
        results="gave probe_one" in one,
        syntax=syntax,
        json_texts=probe.json_texts,
    )


@dataclass(frozen=True)
class _Probe:
    """Lets a template write calls and results.

    Attributes:
        json_texts: the arguments are given as JSON texts.
    """

    template: ChatTemplate
    json_texts: bool = False

    def written_answer(self, calls: Sequence[ToolCall]) -> str | None:
        """An answer that makes `calls`, without what begins and ends any answer."""
        words = "probe_words"
        said = [_ASKED, {"role": "assistant", "content": words}]
        prompt = _rendered(self.template, [_ASKED])
        plain = _rendered(self.template, said, ask=False)
        whole = _rendered(self.template, [_ASKED, self._called(calls)], ask=False)
        if prompt is None or plain is None or whole is None:
            return None
        begun, _, ended = plain.rpartition(words)
        header = max((shared_start(whole, other) for other in (prompt, begun)), key=len)
        answer = whole[len(header) :].rstrip()
        ending = shared_end(answer, ended.rstrip())
        return _NO_REASONING.sub("", answer[: len(answer) - len(ending)].rstrip())

    def with_results(self, count: int) -> str:
        """A conversation with so many calls and their results; "" where it cannot be written."""
        calls = PROBES[:count]
        results = [result_message(call, f"gave {call.name}") for call in calls]
        return _rendered(self.template, [_ASKED, self._called(calls), *results]) or ""

    def _called(self, calls: Sequence[ToolCall]) -> Message:
        message = call_message("", calls)
        return _with_json_texts(message) if self.json_texts else message


def _with_json_texts(message: Message) -> Message:
    """A message whose calls have their arguments as JSON texts, as OpenAI's API has them."""
    calls = [
        {**call, "function": {**call["function"], "arguments": _dumped(call)}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _dumped(call: Mapping[str, Any]) -> str:
    return json.dumps(call["function"]["arguments"], ensure_ascii=False)


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
