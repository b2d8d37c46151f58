"""One template for each call syntax: learned, forced, read back, and streamed piece by piece."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.model import Model
from edgesdk.runtime import Runtime
from edgesdk.server.callable_tools import ToolCallReader, ToolDefinition, callable_tools_of
from edgesdk.structured.grammar_constraint import GrammarVocabulary
from edgesdk.text.prompts import PromptEncoder
from edgesdk.text.template import ChatTemplate
from edgesdk.tools.bare_object import BareObject
from edgesdk.tools.call_grammar import tool_call_format
from edgesdk.tools.call_syntax import CallSyntax
from edgesdk.tools.calls import parse_calls
from edgesdk.tools.tagged_values import TaggedValues
from edgesdk.tools.tool_call import ToolCall
from edgesdk.tools.tool_format import ToolFormat, detect_tool_format
from tests.support import call_templates
from tests.support.control_tokenizer import ControlTokenizer
from tests.support.fake_engine import VOCAB, ByteTokenizer
from tests.support.random_engine import NoiseEngine

TOKENIZER = ByteTokenizer()
LOGITS = np.zeros(VOCAB, np.float32)
VOCABULARY = GrammarVocabulary(TOKENIZER)
FORMATS = {
    name: detect_tool_format(ChatTemplate(source))
    for name, (source, _) in call_templates.SYNTAXES.items()
}
_TYPES: dict[str, dict[str, Any]] = {
    "city": {"type": "string"},
    "days": {"type": "array", "items": {"type": "integer"}},
    "wind": {"type": "boolean"},
    "at": {"type": ["string", "null"]},
    "share": {"type": "number"},
    "more": {"type": "object"},
}
SPEC: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": _TYPES, "required": ["city"]},
    },
}
LIMA = ToolCall(
    "weather", {"city": "Lima", "days": [1, 2], "wind": True, "at": None}, id="call00000"
)
OSLO = ToolCall("weather", {"city": "Oslo"}, id="call00001")


def _syntax(name: str) -> CallSyntax:
    syntax = FORMATS[name].syntax
    assert syntax is not None
    return syntax


def _said(calls: Any) -> list[tuple[str, dict[str, Any], str | None]]:
    return [(call.name, call.arguments, call.problem) for call in calls]


@pytest.mark.parametrize("name", FORMATS)
def test_a_template_shows_how_its_model_writes_calls(name: str) -> None:
    written = call_templates.SYNTAXES[name][1]
    syntax = _syntax(name)
    arguments = json.dumps(LIMA.arguments)
    if written is not None:
        assert syntax.write([LIMA]) == written.replace("ARGUMENTS", arguments)
    for calls in ([LIMA], [OSLO], [LIMA, OSLO]):
        text = syntax.write(calls)
        assert _said(parse_calls(text, [SPEC], syntax)) == _said(calls)
        found = parse_calls(f"I look.\n{text}", [SPEC], syntax)
        assert (_said(found), found.words) == (_said(calls), "I look.")


def _allows(tool_format: ToolFormat, text: str, choice: str, *, whole: bool = True) -> bool:
    structure = tool_call_format(tool_format, [SPEC], TOKENIZER, choice=choice)
    if structure.grammar is None:
        # A call that is a message of its own is checked, and not held to its tool.
        assert choice == "auto"
        return True
    constraint = VOCABULARY.constraint(structure.grammar)
    for token in TOKENIZER.encode(text):
        if not np.isfinite(constraint.masked(LOGITS)[token]):
            return False
        constraint.accept(token)
    return constraint.complete or not whole


@pytest.mark.parametrize("name", FORMATS)
def test_a_demanded_call_is_one_in_the_models_own_syntax(name: str) -> None:
    syntax = _syntax(name)
    arguments = {"city": "a <b>\n{x} \u00e9", "days": [1, 2], "wind": True, "share": 2.5}
    for calls in ([OSLO], [ToolCall("weather", arguments, id="call00000")], [OSLO, OSLO]):
        # Texts in Python have the quotes of JSON where they are held to it.
        text = syntax.write(calls).plain
        if name == "Python":
            text = text.replace("'Oslo'", '"Oslo"').replace(
                repr(arguments["city"]), json.dumps(arguments["city"], ensure_ascii=False)
            )
        assert _allows(FORMATS[name], text, "required"), text
        assert _allows(FORMATS[name], f"I look.\n{text.strip()}", "auto"), text
    for wrong in (ToolCall("whether", {"city": "Oslo"}), ToolCall("weather", {"days": [1]})):
        text = syntax.write([wrong]).plain
        assert not _allows(FORMATS[name], text, "required", whole=False)
    assert not _allows(FORMATS[name], "It is warm.", "required", whole=False)
    assert _allows(FORMATS[name], "It is warm.", "auto")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("step", [1, 5, 1000])
def test_no_piece_of_a_call_is_shown_as_text(name: str, step: int) -> None:
    tools = callable_tools_of([ToolDefinition.model_validate(SPEC)], None, None)
    assert tools is not None
    for calls in ([LIMA], [OSLO, LIMA]):
        for words in ("", "I look.\n"):
            reader = ToolCallReader(tools, _syntax(name))
            text = words + _syntax(name).write(calls).plain
            parts = [
                part
                for start in range(0, len(text), step)
                for part in reader.feed(text[start : start + step])
            ]
            parts += reader.flush()
            assert "".join(part for part in parts if isinstance(part, str)) == words.strip()
            assert _said(part for part in parts if isinstance(part, ToolCall)) == _said(calls)


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_that_is_cut_off_is_neither_text_nor_run(name: str) -> None:
    syntax = _syntax(name)
    text = syntax.write([LIMA]).plain
    begun = text.index("weather") + len("weather")
    tools = callable_tools_of([ToolDefinition.model_validate(SPEC)], None, None)
    assert tools is not None
    for end in range(begun, len(text), 3):
        found = parse_calls(text[:end], [SPEC], syntax)
        # Once the arguments are whole, the marks after them may be missing.
        assert all(call.problem or call.arguments == LIMA.arguments for call in found), text[:end]
        reader = ToolCallReader(tools, syntax)
        parts = [*reader.feed(text[:end]), *reader.flush(cut=True)]
        assert not [part for part in parts if isinstance(part, str)]


@pytest.mark.parametrize(
    "written",
    [
        " to=functions.weather<|channel|>commentary json<|message|>",
        "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>",
    ],
)
def test_gpt_oss_may_name_the_recipient_before_or_after_the_channel(written: str) -> None:
    text = f'{written}{{"city": "Oslo"}}'
    assert _said(parse_calls(text, [SPEC], _syntax("a recipient"))) == _said([OSLO])


def weather(city: Literal["Lima", "Oslo"], days: int, wind: bool) -> None:
    """Tell the weather."""


@pytest.mark.parametrize("name", FORMATS)
def test_noise_that_must_call_does_so_where_marks_are_control_tokens(name: str) -> None:
    syntax = _syntax(name)
    tokenizer = ControlTokenizer(re.findall(r"<[^<>]*>|\[[A-Z_]+\]", syntax.marks))
    template = ChatTemplate(call_templates.SYNTAXES[name][0])
    encoder = PromptEncoder(tokenizer, template, None, None)
    model = Model("noise", Runtime(NoiseEngine(tokenizer.vocab_size), encoder, 0.0))
    for seed in range(3):
        reply = model.respond(
            "?",
            tools=[weather],
            tool_choice="weather",
            temperature=1.5,
            seed=seed,
            max_tokens=500,
            # Noise does not close its reasoning by itself.
            max_reasoning_tokens=9 if name == "reasoning in the prompt" else None,
        )
        [call] = reply.tool_calls
        assert (call.name, call.problem) == ("weather", None)
        assert call.arguments.keys() == {"city", "days", "wind"}
        assert reply.message["content"] == ""


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_ARGUMENTS = st.fixed_dictionaries(
    {"city": st.text() | st.sampled_from(["</tool_call>", '"}', "\n a\n", "</param", "]", "'"])},
    optional={
        "days": st.lists(st.integers()),
        "wind": st.booleans(),
        "at": st.none() | st.text().filter(lambda text: text not in ("null", "None")),
        "share": st.floats(allow_nan=False, allow_infinity=False),
        "more": st.dictionaries(st.text(), _JSON, max_size=3),
    },
)


@given(
    calls=st.lists(
        st.builds(ToolCall, st.just("weather"), _ARGUMENTS, id=st.just("call00000")),
        min_size=1,
        max_size=3,
    ),
    name=st.sampled_from(sorted(FORMATS)),
)
def test_whatever_a_schema_allows_is_read_as_it_was_written(
    calls: list[ToolCall], name: str
) -> None:
    syntax = _syntax(name)
    if isinstance(syntax.notation, TaggedValues | BareObject):
        calls = [
            ToolCall(call.name, _without_marks(call.arguments, syntax), id=call.id)
            for call in calls
        ]
    assert _said(parse_calls(syntax.write(calls), [SPEC], syntax)) == _said(calls)


def _without_marks(value: Any, syntax: CallSyntax) -> Any:
    """A value without what these notations cannot say: a text with the mark of its own end."""
    if isinstance(value, dict):
        is_bare = isinstance(syntax.notation, BareObject)
        keys = {key: "".join(filter(str.isalnum, key)) or "k" if is_bare else key for key in value}
        return {keys[key]: _without_marks(item, syntax) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_marks(item, syntax) for item in value]
    if not isinstance(value, str):
        return value
    return value.replace("<", "(").replace(">", ")").replace("|", "/")


def test_a_syntax_without_a_mark_is_not_learned() -> None:
    assert detect_tool_format(ChatTemplate(call_templates.PYTHONIC)).syntax is None
