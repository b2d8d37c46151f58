"""The tools of a chat request: which of them an answer may call, and reading its calls as it comes.

Text counts as a call when the call is complete and its arguments fit. Until then it is held back;
where that never comes about, it is text for the user after all.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol, TypeAlias

from pydantic import Field

from edgesdk.errors import InvalidOption
from edgesdk.server.api_errors import ApiError
from edgesdk.server.chat_messages import MessageModel
from edgesdk.structured.schema_check import SchemaChecker
from edgesdk.tools.call_finder import CallFinder
from edgesdk.tools.call_syntax import CallSyntax
from edgesdk.tools.calls import ToolCall, end_of_calls, parse_calls
from edgesdk.tools.cut_calls import distinct_calls, whole_calls

# Compiling and checking a schema take about a second up to here, and some more in proportion.
MAX_SCHEMA_CHARACTERS = 100_000
# No model's context holds as much, and reading it takes seconds already.
_MAX_TOOLS_CHARACTERS = 2 * MAX_SCHEMA_CHARACTERS
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


class FunctionDefinition(MessageModel):
    """A function that the model may call; `parameters` is a JSON Schema."""

    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(MessageModel):
    """A tool of a request."""

    type: Literal["function"]
    function: FunctionDefinition

    @property
    def parameters(self) -> dict[str, Any]:
        """The schema of the arguments; without one, the function takes none."""
        given = self.function.parameters
        return _NO_ARGUMENTS if given is None else given

    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates take it."""
        function = {
            "name": self.function.name,
            "description": self.function.description or "",
            "parameters": self.parameters,
        }
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class CallableTools:
    """The tools that one answer may call.

    Attributes:
        specs: all tools that the model sees, as chat templates take them.
        checks: of those that it may call, by name: whether arguments fit.
        strict: those whose calls must fit; the answer is constrained so that they do.
        must_call: whether the answer is nothing but calls.
        parallel: whether it may call several at once.
    """

    specs: tuple[dict[str, Any], ...]
    checks: Mapping[str, Callable[[dict[str, Any]], bool]]
    strict: frozenset[str]
    must_call: bool
    parallel: bool

    def check_calls(self, calls: Sequence[ToolCall]) -> list[ToolCall] | None:
        """The calls with ids of their own, where each of them can be run; else None."""
        if not calls or not all(map(self.can_run, calls)):
            return None
        kept = calls if self.parallel else calls[:1]
        return [replace(call, id=f"call_{uuid.uuid4().hex[:24]}") for call in kept]

    def can_run(self, call: ToolCall) -> bool:
        """Whether a call names one of the tools and its arguments fit."""
        check = self.checks.get(call.name)
        if call.problem is not None or check is None or not check(call.arguments):
            return False
        try:
            json.dumps(call.arguments, ensure_ascii=False, allow_nan=False).encode()
        except ValueError:
            # Python reads NaN and lone surrogates, which the client's parser may not.
            return False
        return True


def callable_tools_of(
    tools: Sequence[ToolDefinition] | None, tool_choice: Any, parallel: bool | None
) -> CallableTools | None:
    """The tools that an answer may call; None where it may call none.

    Raises:
        ApiError: 400; the choice is none of the tools, two have one name, or parameters are no
            schema that can be checked.
    """
    choice = _tool_choice(tool_choice)
    if choice is None:
        return None
    required, chosen = choice
    if not (tools or required):
        return None
    if not tools:
        raise ApiError(400, "This tool_choice goes with tools only.", param="tool_choice")
    if len(json.dumps([tool.for_template() for tool in tools])) > _MAX_TOOLS_CHARACTERS:
        raise ApiError(
            400, f"The tools are longer than {_MAX_TOOLS_CHARACTERS:,} characters.", param="tools"
        )
    checks: dict[str, Callable[[dict[str, Any]], bool]] = {}
    for index, tool in enumerate(tools):
        name, at = tool.function.name, f"tools.{index}.function"
        if name in checks:
            raise ApiError(400, f"Two tools are named {name!r}.", param=f"{at}.name")
        checks[name] = argument_check(tool.parameters, param=f"{at}.parameters")
    names = checks if chosen is None else chosen
    absent = [name for name in names if name not in checks]
    if absent:
        raise ApiError(
            400, f"tool_choice names {absent[0]!r}, which is no tool.", param="tool_choice"
        )
    return CallableTools(
        specs=tuple(tool.for_template() for tool in tools),
        checks={name: checks[name] for name in names},
        strict=frozenset(t.function.name for t in tools if t.function.strict) & set(names),
        must_call=required,
        # A tool that is demanded by its name is called once.
        parallel=parallel is not False and not _is_named(tool_choice),
    )


def argument_check(schema: dict[str, Any], *, param: str) -> Callable[[dict[str, Any]], bool]:
    """A function that says whether arguments fit a client's schema.

    Args:
        param: where the schema stands in the request, for errors.

    Raises:
        ApiError: 400; it is no schema of an object, or none that can be checked.
        MissingExtra: jsonschema is not installed.
    """
    written = json.dumps(schema)
    try:
        if schema.get("type", "object") != "object":
            raise InvalidOption("The parameters must be a schema of type 'object'.")
        if len(written) > MAX_SCHEMA_CHARACTERS:
            raise InvalidOption(f"The schema is longer than {MAX_SCHEMA_CHARACTERS:,} characters.")
        if '"patternProperties"' in written:
            raise InvalidOption("'patternProperties' is not supported in a function's parameters.")
        return SchemaChecker(schema).accepts
    except InvalidOption as error:
        code = "invalid_function_parameters"
        raise ApiError(400, error.message, param=param, code=code) from None


def _tool_choice(given: Any) -> tuple[bool, tuple[str, ...] | None] | None:
    """Whether the answer must be calls, and of which tools (None: of all); None for no calls."""
    match given:
        case "none":
            return None
        case None | "auto" | "required" | "any":
            return given in ("required", "any"), None
        case {"type": "function"}:
            return True, (_tool_name(given),)
        case {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto" | "required" as mode, "tools": [_, *_] as tools},
        }:
            return mode == "required", tuple(map(_tool_name, tools))
    raise ApiError(
        400,
        "tool_choice must be 'none', 'auto', 'required',"
        " {'type': 'function', 'function': {'name': ...}}, or allowed_tools.",
        param="tool_choice",
        code="invalid_value",
    )


def _is_named(given: Any) -> bool:
    return isinstance(given, dict) and given.get("type") == "function"


def _tool_name(tool: Any) -> str:
    match tool:
        case {"type": "function", "function": {"name": str(name)}} | {
            "type": "function",
            "name": str(name),
        }:
            return name
    raise ApiError(
        400,
        "A tool in tool_choice must be {'type': 'function', 'function': {'name': ...}}.",
        param="tool_choice",
        code="invalid_value",
    )


AnswerPart: TypeAlias = str | ToolCall

_DECODER = json.JSONDecoder()


class AnswerReader(Protocol):
    """Takes an answer's text piece by piece."""

    def feed(self, text: str) -> list[AnswerPart]:
        """What is certain after this piece; no text in it is empty."""

    def flush(self, *, cut: bool = False) -> list[AnswerPart]:
        """What was held back, at the answer's end; `cut`: it ended before it was whole."""


class PlainTextReader:
    """Implements `AnswerReader` where no tool may be called."""

    def feed(self, text: str) -> list[AnswerPart]:
        return [text] if text else []

    def flush(self, *, cut: bool = False) -> list[AnswerPart]:
        return []


class ToolCallReader:
    """Implements `AnswerReader` where tools may be called.

    Args:
        syntax: how the model writes calls; None where that is not known.
        answered: whether the answer is held to calls, or else to a form of its own.
    """

    def __init__(
        self,
        callable_tools: CallableTools,
        syntax: CallSyntax | None = None,
        *,
        answered: bool = False,
    ) -> None:
        self._tools = callable_tools
        self._syntax = syntax
        # Where calls are held to their mark, what begins otherwise is the answer: it comes at once.
        held_to_mark = answered and syntax is not None and bool(syntax.mark)
        self._finder = CallFinder(syntax, callable_tools.checks, only_marked=held_to_mark)
        self._calls: tuple[ToolCall, ...] = ()
        self._drops_the_rest = False

    def feed(self, text: str) -> list[AnswerPart]:
        parts: list[AnswerPart] = []
        while not self._drops_the_rest:
            words = self._finder.feed(text)
            parts += [words] if words else []
            ended = self._ended_call()
            if ended is None:
                break
            parts += ended
            text = ""
        return parts

    def flush(self, *, cut: bool = False) -> list[AnswerPart]:
        held = "" if self._drops_the_rest else self._finder.held
        calls = self._checked(parse_calls(held, self._tools.specs, self._syntax))
        if calls:
            return calls
        if self._tools.must_call or (cut and self._has_begun_call(held)):
            # A call that does not end is neither a call nor something for the user.
            return self._checked(whole_calls(held, self._tools.specs, self._syntax))
        # Space between calls is not for the user.
        return [held] if held and not (self._calls and held.isspace()) else []

    def _has_begun_call(self, held: str) -> bool:
        names = "|".join(map(re.escape, self._tools.checks))
        bare = re.match(rf'[\s\[{{`a-z]*"(?:name|function)"\s*:\s*"(?:{names})"', held)
        held = held.strip()
        partial = len(held) > 1 and any(mark.startswith(held) for mark in self._finder.marks)
        return self._finder.is_marked or bool(bare) or partial

    def _ended_call(self) -> list[AnswerPart] | None:
        """What the calls are that have come to their end; None where none has."""
        mark, held = self._finder.mark, self._finder.held
        close = end_of_calls(mark, self._syntax) if mark else ""
        if not mark or not close:
            return None
        begun = held.index(mark) + len(mark)
        end = held.find(close, begun)
        while end >= 0 and _ends_inside_a_string(held[begun:end]):
            end = held.find(close, end + 1)
        if end < 0:
            return None
        end += len(close)
        self._finder.resume(held[end:])
        calls = parse_calls(held[:end], self._tools.specs, self._syntax)
        if any(call.problem for call in calls):
            # A malformed call is neither a call nor something for the user.
            return []
        return self._checked(calls) or [held[:end]]

    def _checked(self, calls: Sequence[ToolCall]) -> list[AnswerPart]:
        """Calls that can be run. Where the model must call, those that it repeats are left out."""
        found = self._tools.check_calls(calls)
        if found is None:
            return []
        if not self._tools.parallel:
            self._drops_the_rest = True
        if self._tools.must_call:
            before = len(self._calls)
            self._calls = distinct_calls([*self._calls, *found])
            return list(self._calls[before:])
        self._calls = (*self._calls, *found)
        return list(found)


def _ends_inside_a_string(call: str) -> bool:
    """Whether the JSON of a call is cut between quotes, where the closing tag is no tag."""
    try:
        _DECODER.raw_decode(call.lstrip())
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except RecursionError:
        return False
    return False
