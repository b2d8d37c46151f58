"""The call syntaxes of the chat templates that llama.cpp collects, as its Python package has them.

`pytest -s` prints the table: what of each template is rendered, learned, forced, read and streamed.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from edgesdk.errors import EdgeError, InvalidOption
from edgesdk.server.callable_tools import ToolCallReader, ToolDefinition, callable_tools_of
from edgesdk.structured.grammar_constraint import GrammarVocabulary
from edgesdk.text.shown_tokens import ShownTokens
from edgesdk.text.template import ChatTemplate
from edgesdk.tools.argument_notations import PythonKeywords
from edgesdk.tools.call_grammar import tool_call_format
from edgesdk.tools.call_messages import call_message, result_message
from edgesdk.tools.call_syntax import CallSyntax
from edgesdk.tools.calls import is_call_mark, parse_calls
from edgesdk.tools.tool_call import ToolCall
from edgesdk.tools.tool_format import ToolFormat, detect_tool_format
from tests.support.control_tokenizer import ControlTokenizer
from tests.support.template_collection import collected_templates

pytestmark = [pytest.mark.integration, pytest.mark.nightly]

# The keys of arguments are the marks themselves; the name has no mark before it; it stands in the
# header of the answer, behind the prompt's end.
REFUSED = {"MiniMax-M3", "meetkai-functionary-medium-v3.2", "muse-glimmer"}
# What of a template's own marks a tokenizer may have as control tokens.
CONTROL = re.compile(r"<\|[^<>]*\|>|<\|[a-z_]+>|<[a-z_]+\|>|<｜[^<>]*｜>|\[[A-Z_]+\]|<\|\"\|>")

SPEC: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where."},
                "days": {"type": "integer", "description": "How many."},
                "exact": {"type": "boolean", "description": "Whether to be exact."},
                "at": {"type": "array", "items": {"type": "number"}, "description": "When."},
            },
            "required": ["city"],
        },
    },
}
CALLS = [
    ToolCall(
        "get_weather",
        {"city": 'Sao "Luís" {x}\n<b> [1]', "days": 3, "exact": True, "at": [1.5, 2]},
        id="call00000",
    ),
    ToolCall("get_weather", {"city": "Lima"}, id="call00001"),
]
ASKED = {"role": "user", "content": "How is it?"}


@pytest.fixture(scope="module")
def templates() -> dict[str, ChatTemplate]:
    """The templates by name; those that are no Jinja are left out."""
    return {name: ChatTemplate(source) for name, source in collected_templates().items()}


@dataclass(frozen=True)
class Row:
    """What was found of one template; None where there is nothing to find."""

    rendered: bool
    learned: bool
    forced: bool
    read: bool
    streamed: bool


def _renders(template: ChatTemplate, tool_format: ToolFormat) -> bool:
    """Whether a conversation with a call and its result has all of them in it."""
    said = [ASKED, call_message("", CALLS[:1]), result_message(CALLS[0], "21 degrees")]
    try:
        prompt = template.render(
            tool_format.conversation(said, [SPEC]), tools=[SPEC], bos_token="", eos_token=""
        )
    except EdgeError:
        return False
    return "get_weather" in prompt and "21 degrees" in prompt and "Lu" in prompt


def _is_forced(tool_format: ToolFormat, syntax: CallSyntax, calls: list[ToolCall]) -> bool:
    """Whether an answer may be these calls where one is demanded, and no words may."""
    tokenizer = ControlTokenizer(CONTROL.findall(syntax.marks))
    grammar = tool_call_format(tool_format, [SPEC], tokenizer, choice="required").grammar
    assert grammar is not None
    vocabulary = GrammarVocabulary(tokenizer)
    logits = np.zeros(tokenizer.vocab_size, np.float32)
    if syntax.notation == PythonKeywords("'"):
        # Texts have the quotes of JSON where a model is held to them.
        syntax = replace(syntax, notation=PythonKeywords('"'))
    ids = tokenizer.encode(syntax.write(calls).plain)
    constraint = vocabulary.constraint(grammar)
    for token in ids:
        if not np.isfinite(constraint.masked(logits)[token]):
            return False
        constraint.accept(token)
    words = vocabulary.constraint(grammar).masked(logits)[ord("I")]
    return constraint.complete and not np.isfinite(words)


def _said(calls: Any) -> list[tuple[str, dict[str, Any], str | None]]:
    return [(call.name, call.arguments, call.problem) for call in calls]


def _is_streamed(syntax: CallSyntax, calls: list[ToolCall]) -> bool:
    """Whether all pieces of calls are held back, token by token, and the words before are not."""
    tokenizer = ControlTokenizer(CONTROL.findall(syntax.marks))
    shown = ShownTokens(tokenizer, lambda text: is_call_mark(text, syntax))
    tools = callable_tools_of([ToolDefinition.model_validate(SPEC)], None, None)
    assert tools is not None
    reader = ToolCallReader(tools, syntax)
    pieces = bytearray()
    parts: list[Any] = []
    # Without a mark, a call is all of an answer.
    said = "I look.\n" if syntax.mark else ""
    for token in tokenizer.encode(said + syntax.write(calls).plain):
        pieces += shown.token_bytes(token)
        try:
            parts += reader.feed(pieces.decode())
        except UnicodeDecodeError:
            continue
        pieces.clear()
    parts += reader.flush()
    words = "".join(part for part in parts if isinstance(part, str))
    found = [part for part in parts if isinstance(part, ToolCall)]
    return words == said.strip() and _said(found) == _said(calls)


def _row(template: ChatTemplate) -> Row:
    tool_format = detect_tool_format(template)
    syntax = tool_format.syntax
    rendered = _renders(template, tool_format)
    if syntax is None:
        return Row(rendered, False, False, False, False)
    calls = CALLS[: 1 if syntax.between is None else 2]
    return Row(
        rendered,
        True,
        _is_forced(tool_format, syntax, calls),
        _said(parse_calls(syntax.write(calls).plain, [SPEC], syntax)) == _said(calls),
        _is_streamed(syntax, calls),
    )


def test_calls_of_nearly_all_templates_are_learned_forced_read_and_streamed(
    templates: dict[str, ChatTemplate],
) -> None:
    listing = {
        name: template for name, template in templates.items() if detect_tool_format(template).tools
    }
    assert (len(templates), len(listing)) == (70, 61)
    rows = {name: _row(template) for name, template in listing.items()}
    fields = list(Row.__annotations__)
    totals = {field: sum(getattr(row, field) for row in rows.values()) for field in fields}
    lines = [f"{name:46} {row}" for name, row in rows.items()]
    sys.stdout.write("\n".join(["", *lines, str(totals), ""]))
    assert {name for name, row in rows.items() if not row.learned} == REFUSED
    assert totals["forced"] == totals["read"] == totals["streamed"] == totals["learned"] == 58
    assert totals["rendered"] == len(listing)


def test_a_demanded_call_of_another_template_is_refused(
    templates: dict[str, ChatTemplate],
) -> None:
    for name in REFUSED:
        with pytest.raises(InvalidOption, match="does not show how to write one"):
            tool_call_format(
                detect_tool_format(templates[name]), [SPEC], ControlTokenizer(()), choice="required"
            )
