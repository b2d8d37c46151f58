"""A Python function as a tool: its schema, and a call with checked arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from edgesdk.errors import InvalidOption
from edgesdk.tools.docstrings import read_docstring


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
        name: the function's own.
        description: the docstring without its part on arguments.
        parameters: JSON Schema of the arguments, an object.
        run: calls the function with keyword arguments; raises `pydantic.ValidationError` where
            they do not fit its type hints, before the function runs, and what it raises itself.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    run: Callable[[dict[str, Any]], Any]

    @property
    def spec(self) -> dict[str, Any]:
        """The tool as chat templates take it, in the form of OpenAI's API."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }
        return {"type": "function", "function": function}


def tool_of(function: Any) -> Tool:
    """The tool that a function is, from its type hints and docstring.

    Raises:
        InvalidOption: it cannot be called with a JSON object: it is asynchronous, has no name of
            its own, takes positional-only arguments, or a type hint has no JSON Schema.
    """
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError
    from pydantic_core import ArgsKwargs

    name = getattr(function, "__name__", "")
    if not inspect.isroutine(function) or not name.isidentifier():
        raise InvalidOption(
            f"The tool {function!r} is not a function with a name.", hint="Define it with 'def'."
        )
    if inspect.iscoroutinefunction(function):
        raise InvalidOption(
            f"The tool {name!r} is asynchronous.", hint="Give a function that returns its result."
        )
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(function)
        parameters = adapter.json_schema()
    except (PydanticUserError, NameError) as error:
        raise InvalidOption(
            f"The tool {name!r} has no JSON Schema: {str(error).splitlines()[0]}"
        ) from None
    if parameters.get("type") != "object":
        raise InvalidOption(
            f"The tool {name!r} takes positional-only arguments; models name theirs.",
            hint="Let each one be given by its name.",
        )
    description, arguments = read_docstring(inspect.getdoc(function) or "")
    for argument, schema in parameters.get("properties", {}).items():
        schema.pop("title", None)
        if argument in arguments:
            schema.setdefault("description", arguments[argument])
    return Tool(
        name, description, parameters, lambda given: adapter.validate_python(ArgsKwargs((), given))
    )


def toolbox(functions: Iterable[Callable[..., Any]]) -> dict[str, Tool]:
    """Tools by name.

    Raises:
        InvalidOption: there is none, two have one name, or see `tool_of`.
    """
    tools: dict[str, Tool] = {}
    for function in functions:
        tool = tool_of(function)
        if tool.name in tools:
            raise InvalidOption(f"Two tools are named {tool.name!r}.", hint="Rename one of them.")
        tools[tool.name] = tool
    if not tools:
        raise InvalidOption("There are no tools.", hint="Give functions, or use respond().")
    return tools
