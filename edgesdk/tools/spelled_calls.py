"""Read calls whose name stands outside of their JSON.

- Mistral since 2025: `[TOOL_CALLS]name[CALL_ID]id[ARGS]{...}`, of which often only the name and the
  object are text;
- Llama 3's own prompt: `<function=name>{...}</function>`;
- GLM-4.5: the name alone, and then `<arg_key>` and `<arg_value>` for each argument;
- Llama 4, LFM2: a list of calls as Python writes them, `[name(key="value")]`;
- Qwen3-Coder: `<function=name>` with `<parameter=key>` and `</parameter>` around each value, which
  is written without quotes.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgesdk.tools.tool_call import ToolCall

_MARK = "[TOOL_CALLS]"
_BETWEEN = re.compile(r"[\s;,]*(?:\[TOOL_CALLS\]\s*)?")
_NAME = r"([A-Za-z_][\w.-]{0,127})"
_MARKED_NAME = re.compile(_NAME + r"\s*(?:\[CALL_ID\]\s*([\w-]+)\s*)?(?:\[ARGS\]\s*)?(?={)")
_BARE_NAME = re.compile(_NAME + "()(?={)")
_FUNCTION = re.compile(r"<function=([^<>\s]+)\s*>\s*")
_PARAMETER = re.compile(
    r"\s*<parameter=([^<>]+)>\n?(.*?)\n?</parameter>(?=\s*(?:<parameter=|</function>|</tool_call>|\Z))",
    re.DOTALL,
)
_KEYED = re.compile(r"\s*(?!(?:true|false|null)\b)([A-Za-z_][\w.-]*)\s*(?=<arg_key>|</tool_call>)")
_KEY_AND_VALUE = re.compile(
    r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>"
    r"(?=\s*(?:<arg_key>|</tool_call>|\Z))",
    re.DOTALL,
)
_PYTHON_MARKS = re.compile(r"<\|/?(?:tool_call_start|tool_call_end|python_start|python_end)\|>")
_FUNCTION_END = re.compile(r"\s*</function>")
_PYTHON = {"True": True, "False": False, "None": None}
_MAX_REFERENCES = 8
_MAX_PYTHON = 20_000
_DECODER = json.JSONDecoder()


def parse_named(text: str) -> tuple[ToolCall, ...]:
    """The calls of an answer that ends with names and their arguments; none where it does not."""
    body = text.strip()
    at = max(body.find(_MARK), 0)
    marked = body.startswith(_MARK, at)
    pattern = _MARKED_NAME if marked or "[ARGS]" in body else _BARE_NAME
    calls: list[ToolCall] = []
    while at < len(body):
        start = _end(_BETWEEN, body, at)
        found = pattern.match(body, start)
        if found is None:
            return tuple(calls) if start == len(body) else ()
        try:
            arguments, at = _DECODER.raw_decode(body, found.end())
        except (ValueError, RecursionError) as error:
            if not marked:
                return ()
            return (*calls, ToolCall(found[1], {}, f"The call is not valid JSON: {error}."))
        calls.append(ToolCall(found[1], arguments, id=found[2] or ""))
    return tuple(calls)


def parse_functions(
    text: str, at: int, specs: Sequence[Mapping[str, Any]]
) -> tuple[list[ToolCall], int]:
    """Read `<function=...>` calls that follow each other, and where they end.

    Args:
        specs: tools in the form of OpenAI's API. Their schemas tell texts from other values.
    """
    calls: list[ToolCall] = []
    while (found := _FUNCTION.match(text, _end(_BETWEEN, text, at))) is not None:
        name, at = found[1], found.end()
        problem: str | None = None
        arguments: dict[str, Any] = {}
        if text.startswith("{", at):
            try:
                arguments, at = _DECODER.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                problem = f"The arguments of {name} are not valid JSON: {error}."
        else:
            types = _types_of(name, specs)
            while (parameter := _PARAMETER.match(text, at)) is not None:
                arguments[parameter[1]] = _value(parameter[2], types.get(parameter[1]))
                at = parameter.end()
            if re.compile(r"\s*<parameter=").match(text, at):
                problem = f"A parameter of {name} does not end."
        calls.append(ToolCall(name, {} if problem else arguments, problem))
        after = text.find("</function>", at) if problem else -1
        at = after if after >= 0 else at
        at = _end(_FUNCTION_END, text, at)
    return calls, at


def parse_keyed(
    text: str, at: int, specs: Sequence[Mapping[str, Any]]
) -> tuple[list[ToolCall], int]:
    """Read a name with `<arg_key>`, `<arg_value>` pairs, and where it ends."""
    found = _KEYED.match(text, at)
    if found is None:
        return [], at
    name, at = found[1], found.end()
    types = _types_of(name, specs)
    arguments: dict[str, Any] = {}
    while (pair := _KEY_AND_VALUE.match(text, at)) is not None:
        arguments[pair[1].strip()] = _value(pair[2], types.get(pair[1].strip()))
        at = pair.end()
    if re.compile(r"\s*<arg_key>").match(text, at):
        return [ToolCall(name, {}, f"An argument of {name} does not end.")], at
    return [ToolCall(name, arguments)], at


def parse_python(text: str) -> tuple[ToolCall, ...]:
    """The calls of an answer that is a list of calls in Python; all values are literals."""
    marked = _PYTHON_MARKS.search(text)
    body = (text[marked.start() :] if marked else text).strip()
    body = _PYTHON_MARKS.sub("", body).strip()
    if not body.startswith("[") or not body.endswith(")]") or len(body) > _MAX_PYTHON:
        return ()
    try:
        tree = ast.parse(body, mode="eval").body
        return tuple(map(_python_call, tree.elts if isinstance(tree, ast.List) else ()))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()


def _python_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("it is no call with names for its arguments")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("an argument has no name")
        arguments[keyword.arg] = ast.literal_eval(keyword.value)
    # What JSON cannot say (bytes, sets) is no argument.
    json.dumps(arguments, allow_nan=False, default=_refuse)
    return ToolCall(ast.unparse(node.func), arguments)


def _refuse(value: Any) -> Any:
    raise ValueError(f"{value!r} is no JSON value")


def _types_of(name: str, specs: Sequence[Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """The JSON types of a tool's parameters, as far as its schema names them."""
    functions = [spec.get("function") or {} for spec in specs]
    schema = next((f.get("parameters") for f in functions if f.get("name") == name), None) or {}
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return {}
    return {key: types_of(value, schema) for key, value in properties.items()}


def types_of(schema: Any, root: Mapping[str, Any], *, depth: int = 0) -> frozenset[str]:
    """The JSON types that a schema names; none where it names none.

    Args:
        root: what the schema's references refer to.
    """
    schema = resolved(schema, root)
    types = {kind for kind in _listed(schema.get("type")) if isinstance(kind, str)}
    if depth < _MAX_REFERENCES:
        for choice in (*_listed(schema.get("anyOf")), *_listed(schema.get("oneOf"))):
            types |= types_of(choice, root, depth=depth + 1)
    values = [*_listed(schema.get("enum")), schema.get("const")]
    return frozenset(types | {"string" for value in values if isinstance(value, str)})


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema, or the one in `root` that it refers to (`#/$defs/NAME`)."""
    for _ in range(_MAX_REFERENCES):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        schema = root
        for part in reference[2:].split("/"):
            schema = schema.get(part) if isinstance(schema, Mapping) else None
    return schema if isinstance(schema, Mapping) else {}


def _value(text: str, types: frozenset[str] | None) -> Any:
    """The value that a text stands for; a text where the schema wants one."""
    if types and types <= {"string", "null"}:
        return None if text in ("null", "None") and "null" in types else text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _PYTHON.get(text, text)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at
