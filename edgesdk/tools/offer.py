"""The tools that a request offers the model: what it is told, held to, and how it is understood."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from edgesdk.errors import InvalidOption, MissingExtra
from edgesdk.structure.asking import AskChanges, Asked, Structure, asked_from
from edgesdk.text.base import Tokenizer
from edgesdk.tools.calls import ToolCall, ToolCalls, calls_in
from edgesdk.tools.checking import faults_of_binding, faults_of_schema

if TYPE_CHECKING:
    from edgesdk.tools.dialect import Dialect
    from edgesdk.tools.function import Tool

Spec: TypeAlias = dict[str, Any]
# A function with type hints, or a tool in the form of OpenAI's API that the caller runs elsewhere.
ToolLike: TypeAlias = Callable[..., Any] | Mapping[str, Any]


class ToolChanges(AskChanges, total=False):
    """The keyword arguments of a request; see `AskChanges` for those that are not here.

    tools: functions with type hints, whose docstrings say to the model what they are for; or
        tools as OpenAI's API describes them. The answer may call them, and none runs by itself.
    tool_choice: "auto" (default) lets the model choose; "required" has it call at least one tool;
        a tool's name has it call that one.
    """

    tools: Iterable[ToolLike]
    tool_choice: str


@dataclass(frozen=True)
class Offer:
    """Tools that an answer may call.

    Attributes:
        specs: in the form of OpenAI's API.
        functions: those of the tools that are Python functions, by name.
        structure: holds the answer to calls that are well-formed and fit the schemas, and reads
            them as `ToolCalls`.
    """

    specs: tuple[Spec, ...]
    functions: Mapping[str, Tool]
    structure: Structure


def asked_with_tools(
    changes: Mapping[str, object],
    dialect: Callable[[], Dialect],
    tokenizer: Tokenizer,
    used_ids: Callable[[], Collection[str]],
) -> tuple[Asked, Offer | None]:
    """Options, form and tools from keyword arguments.

    Args:
        dialect: of the model's chat template; asked for only where there are tools.
        used_ids: gives those of the calls before when an answer is read, whose own then differ.

    Raises:
        InvalidOption: see `asked_from` and `offered`; or a form is asked for besides tools.
        MissingExtra: a call is required, and llguidance is not installed.
    """
    others = {key: value for key, value in changes.items() if key not in ("tools", "tool_choice")}
    asked = asked_from(others)
    tools, choice = changes.get("tools"), changes.get("tool_choice", "auto")
    if tools is None:
        if "tool_choice" in changes:
            raise InvalidOption("'tool_choice' needs 'tools'.", hint="Give both, or neither.")
        return asked, None
    if asked.structure is not None:
        raise InvalidOption(
            "'tools' and a form of the answer exclude each other.",
            hint="Ask for the form once the tools have run.",
        )
    if not isinstance(choice, str):
        raise InvalidOption(f"'tool_choice' is {choice!r}, not a text.")
    offer = offered(tools, dialect(), tokenizer, used_ids, choice=choice)
    return asked._replace(structure=offer.structure), offer


def offered(
    tools: Any,
    dialect: Dialect,
    tokenizer: Tokenizer,
    used_ids: Callable[[], Collection[str]],
    *,
    choice: str = "auto",
) -> Offer:
    """The offer of `tools`; arguments as in `asked_with_tools`.

    Where llguidance is not installed, answers are not held to calls; what they call is checked
    nevertheless.

    Raises:
        InvalidOption: there is no tool, two have one name, one is no tool, or `choice` names none.
        MissingExtra: `choice` is not "auto", and llguidance is not installed.
    """
    specs, functions = toolbox(tools)

    def read(text: str) -> ToolCalls:
        return checked_calls(calls_in(text), specs, functions, used_ids())

    try:
        from edgesdk.tools.constraint import call_structure, loosened

        # What a function takes is checked by its hints too; a schema is all there is of others.
        held_to = [
            loosened([spec])[0] if name in functions else spec for name, spec in specs.items()
        ]
        held = call_structure(dialect, held_to, tokenizer, choice=choice)
        structure = replace(held, read=read)
    except MissingExtra:
        if choice != "auto":
            raise
        structure = Structure(None, read)
    return Offer(tuple(specs.values()), functions, structure)


def checked_calls(
    calls: Iterable[ToolCall],
    specs: Mapping[str, Spec],
    functions: Mapping[str, Tool],
    used_ids: Collection[str],
) -> ToolCalls:
    """Calls as a reply has them: with new ids, and with a `problem` where they do not fit.

    Args:
        specs, functions: what `toolbox` gave.
        used_ids: of the calls before.
    """
    found = [_checked(call, specs, functions) for call in calls]
    return ToolCalls(_with_ids(found, used_ids))


def toolbox(tools: Any) -> tuple[dict[str, Spec], dict[str, Tool]]:
    """The specs of tools, and those that are functions, by name.

    Raises:
        InvalidOption: see `offered`.
    """
    from edgesdk.tools.function import tool_of

    if callable(tools) or isinstance(tools, str | Mapping) or not isinstance(tools, Iterable):
        raise InvalidOption(f"'tools' is {tools!r}, not a list of tools.", hint="Put it in a list.")
    specs: dict[str, Spec] = {}
    functions: dict[str, Tool] = {}
    for each in tools:
        spec = _spec(each) if isinstance(each, Mapping) else None
        tool = None if spec is not None else tool_of(each)
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


def _checked(call: ToolCall, specs: Mapping[str, Spec], functions: Mapping[str, Tool]) -> ToolCall:
    if call.problem is not None:
        return call
    if call.name not in specs:
        known = ", ".join(specs)
        return replace(call, problem=f"there is no tool {call.name!r}; use {known}.")
    tool = functions.get(call.name)
    if tool is not None:
        faults = faults_of_binding(tool, call.arguments)
    else:
        faults = faults_of_schema(specs[call.name]["function"].get("parameters"), call.arguments)
    return replace(call, problem=f"invalid arguments: {'; '.join(faults)}") if faults else call


def _with_ids(calls: Iterable[ToolCall], used_ids: Collection[str]) -> Iterable[ToolCall]:
    """The calls with ids that are new: the model's own where it wrote one that is."""
    used = set(used_ids)
    number = len(used)
    for call in calls:
        key = call.id
        while not key or key in used:
            # Mistral's templates insist on nine characters.
            key, number = f"call{number:05d}", number + 1
        used.add(key)
        yield replace(call, id=key)


def _spec(spec: Mapping[str, Any]) -> Spec:
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
