"""Make a tool of a Python function: its schema and a call with checked arguments."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgesdk.errors import InvalidOption


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
        name: the function's own.
        description: the docstring without its part on arguments.
        parameters: JSON Schema of the arguments, an object.
        bind: from the arguments of a call, as JSON has them, to the function's own, of the types
            of its hints, without calling it; raises `pydantic.ValidationError` where they do not
            fit.
        function: what `bind` binds to.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    bind: Callable[[dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]
    function: Callable[..., Any]

    @property
    def spec(self) -> dict[str, Any]:
        """The tool as chat templates take it, in the form of OpenAI's API."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }
        return {"type": "function", "function": function}

    @property
    def is_async(self) -> bool:
        """Whether `run` gives something to await."""
        return inspect.iscoroutinefunction(self.function)

    def run(self, arguments: dict[str, Any]) -> Any:
        """Call the function with the arguments of a call.

        Raises:
            pydantic.ValidationError: they do not fit its type hints; it was not called.
        """
        positional, named = self.bind(arguments)
        return self.function(*positional, **named)


def tool_from_function(function: Any) -> Tool:
    """Make a tool of a function, from its type hints and docstring.

    Raises:
        InvalidOption: it cannot be called with a JSON object: it has no name of its own, takes
            positional-only or any number of positional arguments, or a type hint has no JSON
            Schema.
    """
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError
    from pydantic_core import ArgsKwargs

    from edgesdk.structured.json_schema import StrictJsonSchema

    name = getattr(function, "__name__", "")
    if not inspect.isroutine(function) or not name.isidentifier():
        raise InvalidOption(
            f"The tool {function!r} is not a function with a name.", hint="Define it with 'def'."
        )
    _check_arguments(name, function)

    # Pydantic would call what it validates for; this has the same signature and only hands over.
    bound: Any = functools.wraps(function)(lambda *args, **kwargs: (args, kwargs))
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(bound)
        parameters = adapter.json_schema(schema_generator=StrictJsonSchema)
    except (PydanticUserError, NameError) as error:
        raise InvalidOption(
            f"The tool {name!r} has no JSON Schema: {str(error).splitlines()[0]}",
            hint="Give each argument a type that JSON can hold.",
        ) from None
    description, arguments = read_docstring(inspect.getdoc(function) or "")
    for argument, schema in parameters.get("properties", {}).items():
        schema.pop("title", None)
        if argument in arguments:
            schema.setdefault("description", arguments[argument])
    return Tool(
        name,
        description,
        parameters,
        bind=lambda arguments: adapter.validate_python(ArgsKwargs((), arguments)),
        function=function,
    )


def _check_arguments(name: str, function: Callable[..., Any]) -> None:
    try:
        arguments = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise InvalidOption(
            f"The tool {name!r} does not say what arguments it takes.",
            hint="Wrap it in a function with type hints.",
        ) from None
    for argument in arguments:
        if argument.kind is argument.POSITIONAL_ONLY:
            raise InvalidOption(
                f"The tool {name!r} takes positional-only arguments; models name theirs.",
                hint="Let each one be given by its name.",
            )
        if argument.kind is argument.VAR_POSITIONAL:
            raise InvalidOption(
                f"The tool {name!r} takes any number of arguments as *{argument.name}; models"
                " name theirs.",
                hint="Take a list instead.",
            )


_NAMES = r"(Args|Arguments|Parameters|Returns|Yields|Raises|Examples?|Notes?|See Also)"
_SECTION = re.compile(rf"^{_NAMES}:\s*$")
_UNDERLINED = re.compile(rf"^{_NAMES}\n-{{3,}}[ \t]*$", re.MULTILINE)
_NUMPY = re.compile(r"^\*{0,2}(\w+)\s*(?::.*)?()$")
_GOOGLE = re.compile(r"^\s+\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_SPHINX = re.compile(r"^:param\s+(?:[^:]*\s)?\*{0,2}(\w+):\s*(.*)$")


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Read the description, and what is said of each argument, each as one line.

    Args:
        text: as `inspect.getdoc` gives it.
    """
    description: list[str] = []
    arguments: dict[str, list[str]] = {}
    section, current, indent = "", None, 0
    style = _NUMPY if _UNDERLINED.search(text) else _GOOGLE
    for line in _UNDERLINED.sub(r"\1:", text).splitlines():
        heading = _SECTION.match(line)
        if heading:
            section, current = heading[1], None
            continue
        depth = len(line) - len(line.lstrip())
        found = _SPHINX.match(line)
        if (
            found is None
            and section.startswith(("Arg", "Par"))
            and (not current or depth <= indent)
        ):
            found = style.match(line)
        if found:
            current, indent = found[1], depth
            arguments[current] = [found[2]]
        elif line.startswith(":"):
            section, current = "fields", None
        elif current is not None and depth > indent:
            arguments[current].append(line)
        elif not section and current is None:
            description.append(line)
    return _joined(description), {name: _joined(lines) for name, lines in arguments.items()}


def _joined(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())
