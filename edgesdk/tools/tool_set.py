"""Hold the tools of a request, and check the calls that an answer makes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from edgesdk.errors import InvalidOption, MissingExtra
from edgesdk.structured.output_format import FormatKwargs, OutputFormat
from edgesdk.structured.schema_check import error_at, schema_errors
from edgesdk.text.tokenizer import Tokenizer
from edgesdk.tools.calls import ToolCall, ToolCalls
from edgesdk.tools.functions import Tool

if TYPE_CHECKING:
    from edgesdk.tools.call_syntax import CallSyntax
    from edgesdk.tools.tool_format import ToolFormat

ToolSpec: TypeAlias = dict[str, Any]
# A function with type hints, or a tool in the form of OpenAI's API that the caller runs elsewhere.
ToolLike: TypeAlias = Callable[..., Any] | Mapping[str, Any]


class RequestKwargs(FormatKwargs, total=False):
    """The keyword arguments of a request; see `FormatKwargs` for those that are not here.

    tools: functions with type hints, whose docstrings say to the model what they are for; or
        tools as OpenAI's API describes them. The answer may call them, and none runs by itself.
    tool_choice: "auto" (default) lets the model choose; "required" has it call at least one tool;
        a tool's name has it call that one.
    """

    tools: Iterable[ToolLike]
    tool_choice: str


@dataclass(frozen=True)
class ToolSet:
    """The tools that an answer may call. It belongs to no conversation.

    Attributes:
        specs: in the form of OpenAI's API.
        check: gives calls ids that are not among the used ones, and a `problem` to those that
            cannot be run.
        call_format: holds the device's answer to calls that are well-formed and fit the schemas;
            None for nothing.
        syntax: how the device's model writes calls; None where that is not known.
        choice: OpenAI's `tool_choice`.
        parallel: whether one answer may make several calls.
        functions: those of the tools that are Python functions, by name.
    """

    specs: tuple[ToolSpec, ...]
    check: Callable[[Iterable[ToolCall], Collection[str]], ToolCalls]
    call_format: OutputFormat | None = None
    syntax: CallSyntax | None = None
    choice: Any = "auto"
    parallel: bool = True
    functions: Mapping[str, Tool] = field(default_factory=dict)

    @property
    def must_call(self) -> bool:
        """Whether text alone is no answer."""
        match self.choice:
            case "auto" | {"allowed_tools": {"mode": "auto"}}:
                return False
        return True


def make_tool_set(
    tools: Any, tool_format: ToolFormat, tokenizer: Tokenizer, *, choice: str = "auto"
) -> ToolSet:
    """Make the set of `tools`; see `RequestKwargs`.

    Where llguidance is not installed, answers are not held to calls; what they call is checked
    nevertheless.

    Raises:
        InvalidOption: there is no tool, two have one name, one is no tool, or `choice` names none.
        MissingExtra: `choice` is not "auto", and llguidance is not installed.
    """
    specs, functions = tools_by_name(tools)
    call_format = None
    try:
        from edgesdk.tools.call_grammar import tool_call_format, with_enforceable_schemas

        # What a function takes is checked by its hints too; a schema is all there is of others.
        enforced = [
            with_enforceable_schemas([spec])[0] if name in functions else spec
            for name, spec in specs.items()
        ]
        call_format = tool_call_format(tool_format, enforced, tokenizer, choice=choice)
    except MissingExtra:
        if choice != "auto":
            raise
    return ToolSet(
        tuple(specs.values()),
        lambda calls, used_ids: check_tool_calls(calls, specs, functions, used_ids),
        call_format,
        tool_format.syntax,
        choice
        if choice in ("auto", "required")
        else {"type": "function", "function": {"name": choice}},
        functions=functions,
    )


def check_tool_calls(
    calls: Iterable[ToolCall],
    specs: Mapping[str, ToolSpec],
    functions: Mapping[str, Tool],
    used_ids: Collection[str],
) -> ToolCalls:
    """Give calls new ids, and a `problem` where they do not fit.

    Args:
        calls: what `parse_calls` gave.
        specs, functions: what `tools_by_name` gave.
        used_ids: of the calls before.
    """
    found = [_check_call(call, specs, functions) for call in calls]
    words = calls.words if isinstance(calls, ToolCalls) else ""
    return ToolCalls(tuple(_assign_ids(found, used_ids)), words)


def tools_by_name(tools: Any) -> tuple[dict[str, ToolSpec], dict[str, Tool]]:
    """Sort tools by name: the specs of all, and those that are functions.

    Raises:
        InvalidOption: see `make_tool_set`.
    """
    from edgesdk.tools.functions import tool_from_function

    if callable(tools) or isinstance(tools, str | Mapping) or not isinstance(tools, Iterable):
        raise InvalidOption(f"'tools' is {tools!r}, not a list of tools.", hint="Put it in a list.")
    specs: dict[str, ToolSpec] = {}
    functions: dict[str, Tool] = {}
    for each in tools:
        spec = _spec(each) if isinstance(each, Mapping) else None
        tool = None if spec is not None else tool_from_function(each)
        spec = tool.spec if tool is not None else spec
        assert spec is not None, "what is no spec is a function"
        name = spec["function"]["name"]
        if name in specs:
            raise InvalidOption(f"Two tools are named {name!r}.", hint="Rename one of them.")
        specs[name] = spec
        if tool is not None:
            functions[name] = tool
    if not specs:
        raise InvalidOption("There are no tools.", hint="Give functions, or leave 'tools' out.")
    return specs, functions


def _check_call(
    call: ToolCall, specs: Mapping[str, ToolSpec], functions: Mapping[str, Tool]
) -> ToolCall:
    if call.problem is not None:
        return call
    if call.name not in specs:
        known = ", ".join(specs)
        return replace(call, problem=f"there is no tool {call.name!r}; use {known}.")
    tool = functions.get(call.name)
    if tool is not None:
        faults = binding_errors(tool, call.arguments)
    else:
        faults = _argument_errors(specs[call.name], call.arguments)
    return replace(call, problem=f"invalid arguments: {'; '.join(faults)}") if faults else call


def _assign_ids(calls: Iterable[ToolCall], used_ids: Collection[str]) -> Iterable[ToolCall]:
    """Give calls ids that are new; the model's own stays where it is."""
    used = set(used_ids)
    number = len(used)
    for call in calls:
        key = call.id
        while not key or key in used:
            # Mistral's templates insist on nine characters.
            key, number = f"call{number:05d}", number + 1
        used.add(key)
        yield replace(call, id=key)


def _spec(spec: Mapping[str, Any]) -> ToolSpec:
    function = spec.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidOption(
            f"The tool {spec!r} has no function with a name.",
            hint='Give {"type": "function", "function": {"name": ..., "parameters": ...}}.',
        )
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidOption(f"The parameters of the tool {function['name']!r} are no JSON Schema.")
    return {"type": "function", "function": {"description": "", **function}}


def binding_errors(tool: Tool, arguments: dict[str, Any]) -> list[str]:
    """Why a function's type hints refuse the arguments; empty where they do not."""
    from pydantic import ValidationError

    try:
        tool.bind(arguments)
    except ValidationError as error:
        return [error_at(fault["loc"], fault["msg"]) for fault in error.errors()]
    return []


def _argument_errors(spec: ToolSpec, arguments: dict[str, Any]) -> list[str]:
    """Why the schema of a tool refuses the arguments; a tool without a schema takes none."""
    parameters = spec["function"].get("parameters")
    if parameters is None:
        return [error_at([name], "not an argument") for name in arguments]
    return schema_errors(parameters, arguments)
