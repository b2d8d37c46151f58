"""Find out how a model's chat template writes tools, calls and results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, takewhile
from typing import Any, Literal

from edgesdk.errors import TemplateError
from edgesdk.text.template import ChatTemplate
from edgesdk.text.template_text import TemplateText, concat, from_assistant, from_template
from edgesdk.tools.call_messages import Message, call_message, calls_of, result_message
from edgesdk.tools.calls import ToolCall, parse_calls

Field = Literal["name", "arguments", "id"]

# A mark that calls begin with, as <tool_call> or [TOOL_CALLS].
_MARK = r"(?:<[^<>\s=]+>|\[[A-Z_]+\])"
# It at the end of a text, with what opens a list of calls; and at its beginning.
_MARKED = re.compile(rf"{_MARK}?[\s\[]*\Z")
_BEGINS_MARKED = re.compile(rf"\s*{_MARK}\s*")
_SEPARATORS = ((", ", ": "), (",", ":"))


@dataclass(frozen=True)
class CallSyntax:
    """How a family writes calls: the text around names and arguments.

    Mostly that is a JSON object for each; see `edgesdk.tools.spelled_calls` for the others.

    Attributes:
        opening: before the first call; may start with a mark, as "<tool_call>".
        fields: what is written of each call, in this order.
        texts: what stands before, between and after the fields; one more than those.
        between: what stands between two calls; None where an answer has only one.
        closing: after the last call.
        separators: between the items of the arguments, and after their keys.
        parameter: where arguments are no JSON: the text before each key, between it and its value,
            and after the value.
    """

    opening: str
    fields: tuple[Field, ...]
    texts: tuple[str, ...]
    between: str | None
    closing: str
    separators: tuple[str, str] = _SEPARATORS[0]
    parameter: tuple[str, str, str] | None = None

    @property
    def mark(self) -> str:
        """The part of `opening` that tells calls from other text; may be empty."""
        return re.split(r"(?<=\S)[\s\[]+\Z", self.opening)[0].strip()

    def write(self, calls: Sequence[ToolCall]) -> TemplateText:
        """An answer that makes `calls`; what is around names and arguments is no value."""
        between = from_template(self.between or "; ")
        listed = between.join(map(self._one, calls))
        return concat((from_template(self.opening), listed, from_template(self.closing)))

    def _one(self, call: ToolCall) -> TemplateText:
        written = {
            "name": self.written_name(call.name),
            "arguments": self._arguments(call),
            "id": call.id,
        }
        fields = [written[field] for field in self.fields]
        texts = list(map(from_template, self.texts))
        return concat(chain(*zip(texts, fields, strict=False), texts[-1:]))

    def written_name(self, name: str) -> str:
        """A name as it is written: inside of a JSON text, or by itself."""
        before = self.texts[self.fields.index("name")]
        return escape_json(name) if before.endswith('"') else name

    def _arguments(self, call: ToolCall) -> str:
        if self.parameter is None:
            return _dumped(call, self.separators)
        before, middle, after = self.parameter
        return concat(
            part
            for key, value in call.arguments.items()
            for part in (
                from_template(before),
                key,
                from_template(middle),
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
                from_template(after),
            )
        )


_OBJECT = ('{"name": "', '", "arguments": ', "}")
# Hermes function calling (Nous Research), which Qwen took over.
HERMES = CallSyntax(
    "<tool_call>\n",
    ("name", "arguments"),
    _OBJECT,
    "\n</tool_call>\n<tool_call>\n",
    "\n</tool_call>",
)
# SmolLM2 was trained on one list of all calls.
SMOLLM = CallSyntax("<tool_call>[", ("name", "arguments"), _OBJECT, ", ", "]</tool_call>")


def escape_json(name: str) -> str:
    """Escape a name for the inside of a JSON text."""
    return json.dumps(name, ensure_ascii=False)[1:-1]


def infer_syntax(
    write: Callable[[Sequence[ToolCall]], str | None], probes: Sequence[ToolCall]
) -> CallSyntax | None:
    """Find out the syntax of a writer of calls, by letting it write `probes`.

    Args:
        write: the answer that makes calls; None where it cannot be written.
        probes: two calls with unlike names, arguments and ids, none of which JSON escapes.

    Returns:
        None where the calls are not written in a way that `parse_calls` reads.
    """
    one, two = write(probes[:1]), write(probes)
    if one is None:
        return None
    separators = next((s for s in _SEPARATORS if _dumped(probes[0], s) in one), None)
    if separators is None:
        syntax = _with_parameters(one, probes[0])
    else:
        syntax = _with_json(one, probes[0], separators)
    if syntax is None:
        return None
    syntax = replace(syntax, between=_between(syntax, two, probes))
    # Other shapes than those that are read here would be held to, and then not understood.
    read = [(call.name, call.arguments) for call in parse_calls(syntax.write(probes[:1]))]
    return syntax if read == [(probes[0].name, probes[0].arguments)] else None


def _with_json(one: str, call: ToolCall, separators: tuple[str, str]) -> CallSyntax | None:
    """The syntax of one call whose arguments are JSON."""
    places = _places(one, call, separators)
    if "name" not in places:
        return None
    order = sorted(places, key=lambda field: places[field][0])
    edges = [0, *chain(*(places[field] for field in order)), len(one)]
    first, *inner, last = (one[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))
    start, end = first.find("{"), last.rfind("}") + 1
    if start < 0 or not end:
        # The name stands outside of the JSON.
        opening, before = _opening(first)
        return CallSyntax(
            opening, tuple(order), (before, *inner, ""), None, last.rstrip(), separators
        )
    marked = _MARKED.search(first[:start])
    return CallSyntax(
        opening=marked[0].lstrip() if marked else "",
        fields=tuple(order),
        texts=(first[start:], *inner, last[:end]),
        between=None,
        closing=last[end:].rstrip(),
        separators=separators,
    )


def _with_parameters(one: str, call: ToolCall) -> CallSyntax | None:
    """The syntax of one call whose arguments are written one by one, without JSON."""
    parts = [call.name, *(str(part) for item in call.arguments.items() for part in item)]
    edges, at = [0], 0
    for part in parts:
        place = one.find(part, at)
        if place < 0:
            return None
        at = place + len(part)
        edges += [place, at]
    edges.append(len(one))
    texts = [one[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    first, to_key, middle, between, again, last = texts
    same = takewhile(
        lambda pair: pair[0] == pair[1], zip(to_key[::-1], between[::-1], strict=False)
    )
    shared = to_key[len(to_key) - len(list(same)) :]
    # What ends a value may end as what ends the name.
    before = shared[max(shared.rfind("<"), 0) :]
    after = between[: len(between) - len(before)]
    if middle != again or not last.startswith(after):
        return None
    opening, start = _opening(first)
    return CallSyntax(
        opening,
        ("name", "arguments"),
        (start, to_key[: len(to_key) - len(before)], ""),
        None,
        last[len(after) :].rstrip(),
        parameter=(before, middle, after),
    )


def _opening(text: str) -> tuple[str, str]:
    """What stands before a name: the mark before all calls, and what comes before each name."""
    found = _BEGINS_MARKED.match(text)
    return (found[0].lstrip(), text[found.end() :]) if found else ("", text.lstrip())


def _places(text: str, call: ToolCall, separators: tuple[str, str]) -> dict[Field, tuple[int, int]]:
    wanted: dict[Field, str] = {
        "name": call.name,
        "arguments": _dumped(call, separators),
        "id": call.id,
    }
    found = {field: text.find(value) for field, value in wanted.items()}
    return {
        field: (place, place + len(wanted[field])) for field, place in found.items() if place >= 0
    }


def _between(syntax: CallSyntax, two: str | None, probes: Sequence[ToolCall]) -> str | None:
    if two is None:
        return None
    bare = replace(syntax, opening="", between=None, closing="")
    first, second = (bare.write([call]) for call in probes)
    start, end = two.find(first), two.find(second)
    return two[start + len(first) : end] if 0 <= start < end else None


def _dumped(call: ToolCall, separators: tuple[str, str]) -> str:
    return json.dumps(call.arguments, ensure_ascii=False, separators=separators)


_SYSTEM = """You may call functions to answer the user. They are listed in <tools></tools>:
<tools>
{specs}
</tools>
To call {how}:
{example}
The results come in <tool_response></tool_response>; then answer the user in words."""
_RESULT = from_template("<tool_response>\n{}\n</tool_response>")
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
class ToolFormat:
    """What a chat template can write of tools, calls and results.

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
            return {**message, **call_message(content, calls)}
        written = (self.syntax or HERMES).write(calls)
        words = from_assistant(f"{content}\n" if content else "")
        return {"role": "assistant", "content": concat((words, written))}

    def _with_tools(
        self, messages: list[Message], specs: Sequence[Mapping[str, Any]]
    ) -> list[Message]:
        how, example = _WORDS[self.syntax or HERMES]
        listed = "\n".join(json.dumps(spec["function"], ensure_ascii=False) for spec in specs)
        before, after = _SYSTEM.format(specs="{specs}", how=how, example=example).split("{specs}")
        words = concat((from_template(before), listed, from_template(after)))
        if messages and messages[0]["role"] == "system":
            first, *others = messages
            return [{**first, "content": concat((f"{first['content']}\n\n", words))}, *others]
        return [{"role": "system", "content": words}, *messages]


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


def detect_tool_format(template: ChatTemplate | None) -> ToolFormat:
    """Find out what a template can write, by trying it; without a template, nothing."""
    if template is None:
        return ToolFormat(tools=False, calls=0, results=False, syntax=HERMES)
    if "probe_one" not in (_rendered(template, [_ASKED]) or ""):
        # It may write any role, but its model was not trained on those of tools.
        named = _rendered(template, [_ASKED], tools=None) or ""
        own = SMOLLM if "SmolLM" in named else HERMES
        return ToolFormat(tools=False, calls=0, results=False, syntax=own)
    results_of = [
        [result_message(call, f"gave {call.name}") for call in _PROBES[:n]] for n in (1, 2)
    ]
    one, two = (
        _rendered(template, [_ASKED, call_message("", _PROBES[: len(results)]), *results]) or ""
        for results in results_of
    )
    return ToolFormat(
        tools=True,
        calls=2 if "probe_other_value" in two else int("probe_value" in one),
        results="gave probe_one" in one,
        syntax=infer_syntax(lambda calls: _written_answer(template, calls), _PROBES),
    )


def _written_answer(template: ChatTemplate, calls: Sequence[ToolCall]) -> str | None:
    """Let a template write an answer that makes `calls`, and cut off what ends any answer."""
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
