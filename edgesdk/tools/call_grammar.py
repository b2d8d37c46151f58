"""Build grammars of well-formed calls of given tools, in a family's own syntax."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from edgesdk.errors import InvalidOption
from edgesdk.structured.grammar_constraint import load_llguidance
from edgesdk.structured.output_format import OutputFormat, json_grammar
from edgesdk.text.tokenizer import Tokenizer
from edgesdk.tools.call_rules import ANY_TEXT, CallRules, symbol
from edgesdk.tools.call_syntax import CallSyntax
from edgesdk.tools.calls import parse_calls
from edgesdk.tools.cut_calls import repeats_itself
from edgesdk.tools.tool_format import ToolFormat

_ANY = {"type": "object"}
# Combinations that more properties may come from.
_OPEN = ("$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties", "unevaluatedProperties")
# Mistral's models were trained on ids of nine characters.
_VALUES = {"id": "/[a-zA-Z0-9]{9}/", "index": "/[0-9]{1,3}/"}


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
            not known how the model writes calls, "auto" allows any text, and others are refused.
            It does so too where a call is a message with a header of its own.
        parallel: whether one answer may make several calls, where the family can.
        answer: what an answer without calls must look like, for "auto"; None for any text. It may
            be read as calls where it looks like them.

    Raises:
        InvalidOption: there are no tools, none has the name that was chosen, the schema of one
            cannot be enforced (the message names it), or a call is demanded of a model whose
            syntax is not known.
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
    syntax = tool_format.syntax
    read = partial(parse_calls, specs=list(specs), syntax=syntax)
    if syntax is None and choice == "auto":
        any_text = load_llguidance().LLMatcher.grammar_from_regex(ANY_TEXT)
        return OutputFormat(any_text if answer is None else answer.grammar, read=read)
    if syntax is None:
        raise InvalidOption(
            "A call cannot be demanded: the chat template does not show how to write one.",
            hint="Use tool_choice='auto', or a model whose template writes calls.",
        )
    if syntax.is_header and choice == "auto" and answer is None:
        # Words have a header of their own, of control tokens that no rule for text allows.
        return OutputFormat(None, read=read)
    rules = CallRules(tokenizer)
    _add_start(rules, syntax, free=choice == "auto", answered=answer is not None)
    several = syntax.between is not None and parallel
    again = rules.text((syntax.between or "") + syntax.texts[0])
    more = f"({again} call)*" if several else ""
    rules.add("calls", f"call {more} {_closing(syntax.closing, rules, tokenizer)}")
    rules.add("call", " | ".join(f"call_{place}" for place in range(len(functions))))
    for place, function in enumerate(functions.values()):
        rules.add(f"call_{place}", _call(syntax, function, rules, tokenizer))
    grammar: str = load_llguidance().LLMatcher.grammar_from_lark(
        "%llguidance {}\n" + "\n".join(rules.lines)
    )
    if answer is not None and answer.grammar is not None:
        grammar = json.dumps(
            {"grammars": [{"lark_grammar": grammar}, _named_answer(answer.grammar)]}
        )
    repeats = None
    if several and choice != "auto":
        repeats = partial(repeats_itself, specs=list(specs), syntax=syntax)
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


def _add_start(rules: CallRules, syntax: CallSyntax, *, free: bool, answered: bool) -> None:
    opening = syntax.opening + syntax.texts[0]
    if not free:
        rules.add("start", f"{rules.text(opening)} calls")
        return
    if answered:
        rules.add("start", f"@answer | {rules.text(opening)} calls")
        return
    if not syntax.mark:
        rules.add("start", f"TEXT | {rules.text(opening)} calls")
        rules.add("TEXT", r"/(\s*[^\s{](.|\n)*)?/")
        return
    rules.add("TEXT", f"/{ANY_TEXT}/")
    opening = opening.lstrip()
    if not isinstance(rules.pieces(opening)[0], str):
        # No text has a control token in it.
        rules.add("start", f"TEXT | TEXT {rules.text(opening)} calls")
        return
    # Lazy: as soon as the mark is there, only a call may follow.
    rules.add("opened[lazy]", f"TEXT {rules.text(syntax.mark)}")
    rest = rules.text(opening.removeprefix(syntax.mark))
    rules.add("start", f"TEXT | opened {rest} calls")


def _call(
    syntax: CallSyntax, function: Mapping[str, Any], rules: CallRules, tokenizer: Tokenizer
) -> str:
    """A call of one tool, behind the text that all calls begin with."""
    name = function["name"]
    schema = arguments_schema(function.get("parameters"))
    try:
        json_grammar(schema)
    except InvalidOption as error:
        raise InvalidOption(f"The tool {name!r}: {error.message}", hint=error.hint) from None
    # The name in one piece with what is around it: longer terminals make fewer masks.
    text, parts = "", []
    for field, after in zip(syntax.fields, syntax.texts[1:], strict=True):
        if field == "name":
            text += syntax.written_name(name) + after
            continue
        value = syntax.notation.rule(schema, rules) if field == "arguments" else _VALUES[field]
        parts += [rules.text(text), value]
        text = after
    return " ".join([*parts, _closing(text, rules, tokenizer)])


def _closing(text: str, rules: CallRules, tokenizer: Tokenizer) -> str:
    """What ends calls, up to a token that ends the answer itself."""
    pieces = rules.pieces(text)
    kept = takewhile(lambda piece: piece not in tokenizer.eos_token_ids, pieces)
    return " ".join(map(symbol, kept))
