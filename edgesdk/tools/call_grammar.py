"""Build grammars of well-formed calls of given tools, in a family's own syntax."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from edgesdk.errors import InvalidOption
from edgesdk.structured.grammar_constraint import load_llguidance
from edgesdk.structured.output_format import OutputFormat, json_grammar
from edgesdk.text.tokenizer import Tokenizer
from edgesdk.tools.calls import parse_calls
from edgesdk.tools.cut_calls import repeats_itself
from edgesdk.tools.spelled_calls import resolved, types_of
from edgesdk.tools.tool_format import HERMES, CallSyntax, ToolFormat

_TEXT = r"(.|\n)*"
_ANY = {"type": "object"}
# Combinations that more properties may come from.
_OPEN = ("$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties", "unevaluatedProperties")


def tool_call_format(
    tool_format: ToolFormat,
    specs: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    choice: str = "auto",
    parallel: bool = True,
    answer: OutputFormat | None = None,
) -> OutputFormat:
    """Make the output format of answers that call tools; its value is a tuple of `ToolCall`.

    Args:
        specs: tools in the form of OpenAI's API. An object of arguments that leaves open which
            other properties there may be is closed.
        tokenizer: of the model that answers; some families open calls with a control token.
        choice: "required" for at least one call, "auto" for calls or free text before them or
            instead of them, or the name of the one tool that is to be called. Where a family's
            calls open with no mark of their own, free text may not start with "{". Where it is
            not known how the model writes calls, "auto" allows any text.
        parallel: whether one answer may make several calls, where the family can.
        answer: what an answer without calls must look like, for "auto"; None for any text. It may
            be read as calls where it looks like them.

    Raises:
        InvalidOption: there are no tools, none has the name that was chosen, or the schema of
            one cannot be enforced; the message names it.
        MissingExtra: llguidance is not installed.
    """
    functions = {spec["function"]["name"]: spec["function"] for spec in specs}
    if choice not in ("auto", "required"):
        if choice not in functions:
            raise InvalidOption(
                f"There is no tool {choice!r} to choose.",
                hint=f"Choose from: {', '.join(functions)}.",
            )
        functions, parallel = {choice: functions[choice]}, False
    if not functions:
        raise InvalidOption("There are no tools.", hint="Give tools, or leave the choice out.")
    read = partial(parse_calls, specs=list(specs))
    syntax = tool_format.syntax
    if syntax is None and choice == "auto" and answer is None:
        return OutputFormat(load_llguidance().LLMatcher.grammar_from_regex(_TEXT), read=read)
    syntax = syntax or HERMES
    several = syntax.between is not None and parallel
    again = f"({_spelled(syntax.between or '', tokenizer)} call)*" if several else ""
    rules = [
        _start(syntax, tokenizer, free=choice == "auto", answered=answer is not None),
        f"calls: call {again} {_spelled(syntax.closing, tokenizer)}",
        f"call: {' | '.join(f'call_{place}' for place in range(len(functions)))}",
        *(
            f"call_{place}: {_call(syntax, function, tokenizer)}"
            for place, function in enumerate(functions.values())
        ),
    ]
    if syntax.parameter is not None:
        # Lazy: a text goes on to the first mark of its end.
        rules.append(f"to_the_end[lazy]: ANY {_text(syntax.parameter[2])}\nANY: /{_TEXT}/")
    grammar: str = load_llguidance().LLMatcher.grammar_from_lark(
        "%llguidance {}\n" + "\n".join(rules)
    )
    if answer is not None and answer.grammar is not None:
        grammar = json.dumps(
            {"grammars": [{"lark_grammar": grammar}, _named_answer(answer.grammar)]}
        )
    repeats = partial(repeats_itself, specs=list(specs)) if several and choice != "auto" else None
    return OutputFormat(grammar, read=read, is_over=repeats)


def with_enforceable_schemas(specs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Allow tools whose schema cannot be enforced any object as arguments.

    For callers that check the arguments themselves before a function runs.

    Raises:
        MissingExtra: llguidance is not installed.
    """
    loose = []
    for spec in specs:
        function = dict(spec["function"])
        try:
            json_grammar(arguments_schema(function.get("parameters")))
        except InvalidOption:
            function["parameters"] = {**_ANY, "additionalProperties": True}
        loose.append({**spec, "function": function})
    return loose


def arguments_schema(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Close a schema of arguments, so that it names all of them.

    Models that may write other properties spend their answer on them. Without a schema a tool
    takes no arguments, as in OpenAI's API.
    """
    schema = dict(parameters or _ANY)
    if schema.get("type") == "object" and not any(key in schema for key in _OPEN):
        schema.setdefault("additionalProperties", False)
    return schema


def _named_answer(grammar: str) -> dict[str, Any]:
    """The grammar of answers, as the one that rules call `@answer`."""
    is_lark = not grammar.startswith("{")
    made = {"lark_grammar": grammar} if is_lark else json.loads(grammar)["grammars"][0]
    return {**made, "name": "answer"}


def _start(syntax: CallSyntax, tokenizer: Tokenizer, *, free: bool, answered: bool) -> str:
    mark = syntax.mark
    before, _, after = syntax.opening.partition(mark) if mark else ("", "", syntax.opening)
    control = _control_token(mark, tokenizer)
    opened = _text(mark) if control is None else f"<[{control}]>"
    calls = f"{_text(before)} {opened} {_text(after)} calls"
    if not free:
        return f"start: {calls}"
    if answered:
        return f"start: @answer | {calls}"
    if not mark:
        return f"start: TEXT | {calls}\nTEXT: /(\\s*[^\\s{{](.|\\n)*)?/"
    if control is not None:
        return f"start: TEXT | TEXT {calls}\nTEXT: /{_TEXT}/"
    # Lazy: as soon as the mark is there, only a call may follow.
    return (
        f"start: TEXT | opened {_text(after)} calls\n"
        f"opened[lazy]: TEXT {_text(mark)}\nTEXT: /{_TEXT}/"
    )


def _control_token(mark: str, tokenizer: Tokenizer) -> int | None:
    """The token without text that `mark` names; None where it is spelled."""
    ids = tokenizer.encode(mark) if mark else []
    pieces = [tokenizer.token_bytes(token) for token in ids]
    controls = [token for token, piece in zip(ids, pieces, strict=True) if not piece]
    # Some tokenizers put a space in front of any text.
    return controls[0] if len(controls) == 1 and not b"".join(pieces).strip() else None


def _call(syntax: CallSyntax, function: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    name = function["name"]
    schema = arguments_schema(function.get("parameters"))
    try:
        json_grammar(schema)
    except InvalidOption as error:
        raise InvalidOption(f"The tool {name!r}: {error.message}", hint=error.hint) from None
    # The name in one piece with what is around it: longer terminals make fewer masks.
    text, parts = syntax.texts[0], []
    for field, after in zip(syntax.fields, syntax.texts[1:], strict=True):
        if field == "name":
            written = syntax.written_name(name)
            whole = _control_token(after.strip(), tokenizer) is None
            parts += [] if whole else [_text(text + written), _spelled(after, tokenizer)]
            text = text + written + after if whole else ""
        else:
            # Mistral's models were trained on ids of nine characters.
            value = "/[a-zA-Z0-9]{9}/"
            if field == "arguments":
                value = _arguments(syntax, schema)
            parts += [_text(text), value]
            text = after
    return " ".join([*parts, _spelled(text, tokenizer)])


def _arguments(syntax: CallSyntax, schema: dict[str, Any]) -> str:
    if syntax.parameter is None:
        item, key = syntax.separators
        spacing = {"whitespace_flexible": False, "item_separator": item, "key_separator": key}
        return f"%json {json.dumps({**schema, 'x-guidance': spacing})}"
    before, middle, after = syntax.parameter
    ending = _text(after)
    properties, parts = schema.get("properties") or {}, []
    for key, given in properties.items():
        part = f"{_text(before + key + middle)} {_parameter(given, schema, ending)}"
        parts.append(part if key in schema.get("required", ()) else f"({part})?")
    return " ".join(parts)


def _parameter(given: Any, schema: Mapping[str, Any], ending: str) -> str:
    """A value without quotes, and what ends it."""
    value = resolved(given, schema)
    choices = value.get("enum", [value["const"]] if "const" in value else [])
    if choices:
        texts = [choice if isinstance(choice, str) else json.dumps(choice) for choice in choices]
        return f"({' | '.join(map(_text, texts))}) {ending}"
    if not value or "string" in types_of(value, schema):
        return "to_the_end"
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return f"%json {json.dumps({**definitions, **value})} {ending}"


def _spelled(text: str, tokenizer: Tokenizer) -> str:
    """A text of the syntax, in which marks may be control tokens."""
    control = _control_token(text.strip(), tokenizer)
    return _text(text) if control is None else f"<[{control}]>"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
