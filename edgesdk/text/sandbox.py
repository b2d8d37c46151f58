"""Run chat templates in a Jinja sandbox with a budget.

A template comes with a model, so it is code from a stranger. Jinja's immutable sandbox keeps it
away from Python's internals; the budget below keeps it from running for ever or from eating the
memory. Helpers and whitespace rules are those of transformers' `apply_chat_template`, because
templates are written against it.

Templates have no unbounded loop: all that repeats is a `for`, a call or a filter. Each of them
costs steps, and so does every 64 characters of text that an expression makes.

The template's own text is a `TemplateText` from the start, so that what comes out says which
characters are the template's and which are values.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial, wraps
from typing import Any, cast

from jinja2 import TemplateError, nodes, pass_context, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from markupsafe import Markup

from edgesdk.text.template_text import (
    TemplateText,
    concat,
    fill,
    from_template,
    is_template,
    replace,
)

MAX_STEPS = 2**20
CHARACTERS_PER_STEP = 64
_MAX_INTEGER_BITS = 4096
_MAX_WIDTH = 100_000
_SIZED = (str, list, tuple, dict, range)
# Filters whose arguments are widths or counts.
_PADDING = frozenset({"batch", "center", "format", "indent", "slice", "truncate", "wordwrap"})
# A printf or str.format field with a width of six digits, or a printf width out of an argument.
_WIDE_FIELD = re.compile(r"%[^a-zA-Z]*?(?:\d{6}|\*)|\{[^{}]*\d{6}")


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """A sandbox whose templates end with `SecurityError` when their budget is spent.

    `start` must be called before each rendering, in the thread that renders.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(concat)

    def __init__(self) -> None:
        # Set first: constant expressions are evaluated while a template compiles.
        self._budget = threading.local()
        self._literals: dict[str, _Literal] = {}
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlock, loopcontrols],
            finalize=self._printed,
        )
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = _PlainDict()
        self.globals["namespace"] = _PlainNamespace
        self.filters["tojson"] = _tojson
        self.filters["join"] = self._join
        self.filters["replace"] = self._replace
        self.filters["safe"] = _mark_safe
        for name, function in self.filters.items():
            self.filters[name] = self._charged(function, pads=name in _PADDING)
        self.filters[_REPEAT] = self._repeat
        self.filters[_CONCAT] = self._concat
        self.filters[_CHARGE] = self._charge
        self.filters[_LITERAL] = self._literal

    def start(self) -> None:
        """Fill the budget for one rendering."""
        self._budget.steps = MAX_STEPS

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._spend(1)
        owner = getattr(function, "__self__", None)
        text = owner if isinstance(owner, str) else None
        if isinstance(function, LoopContext) and args:
            args = (self._repeat(args[0], 0), *args[1:])
        elif text is not None:
            _check_widths((*args, *kwargs.values()))
            if function.__name__ == "join" and args:
                args = (self._joined(args[0], text), *args[1:])
                function = TemplateText(text).join
            elif function.__name__ == "replace":
                self._check_replace(text, *args)
                function = partial(replace, text)
        result = super().call(context, function, *args, **kwargs)
        self._spend(_steps(result))
        return _traced(result, (text, *args, *kwargs.values())) if text is not None else result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        elif operator == "**":
            _check_power(left, right)
        elif operator == "*":
            self._check_product(left, right)
        result = super().call_binop(context, operator, left, right)
        self._spend(_steps(result))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text = value.__self__
        _check_format(text)

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_widths((*args, *kwargs.values()))
            return fill(
                text,
                lambda: wrapped(*args, **kwargs),
                lambda holders, named: wrapped(*holders, **named),
                args,
                kwargs,
            )

        return checked

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = Parser(self, source, name, filename).parse()
        for loop in tree.find_all(nodes.For):
            loop.iter = _filtered(loop.iter, _REPEAT, nodes.Const(_literal_steps(loop)))
        blocks: list[nodes.Macro | nodes.CallBlock] = [*tree.find_all(nodes.Macro)]
        for block in (*blocks, *tree.find_all(nodes.CallBlock)):
            charge = _filtered(nodes.Const(""), _CHARGE, nodes.Const(_literal_steps(block)))
            block.body.insert(0, nodes.Output([charge], lineno=block.lineno))
        _rewrite(tree)
        tree.set_environment(self)
        return tree

    def _spend(self, steps: int) -> None:
        left = getattr(self._budget, "steps", MAX_STEPS) - steps
        self._budget.steps = left
        if left < 0:
            raise SecurityError("it runs for too long or writes too much")

    def _repeat(self, items: Iterable[Any], cost: int) -> Iterator[Any]:
        for item in items:
            self._spend(1 + cost)
            yield item

    def _concat(self, parts: list[Any]) -> str:
        texts = list(map(_as_text, parts))
        self._spend(sum(map(len, texts)) // CHARACTERS_PER_STEP)
        return concat(texts)

    @pass_eval_context
    def _join(
        self, context: EvalContext, items: Iterable[Any], d: str = "", attribute: Any = None
    ) -> str:
        if attribute is not None:
            items = map(make_attrgetter(self, attribute), items)
        return TemplateText(d).join(map(_as_text, self._joined(items, d)))

    @pass_eval_context
    def _replace(
        self, context: EvalContext, text: Any, old: str, new: str, count: int | None = None
    ) -> str:
        self._check_replace(str(text), old, new)
        return replace(str(text), str(old), str(new), -1 if count is None else count)

    def _joined(self, items: Iterable[Any], separator: object) -> list[Any]:
        listed = list(self._repeat(items, _steps(separator)))
        self._spend(sum(map(_steps, listed)))
        return listed

    def _check_replace(self, text: str, old: Any = "", new: Any = "", *_: Any) -> None:
        self._spend(text.count(str(old)) * len(str(new)) // CHARACTERS_PER_STEP)

    # Jinja folds filters of constants while it compiles, but not those that want the context.
    @pass_context
    def _charge(self, context: Context, nothing: str, cost: int) -> str:
        self._spend(cost)
        return nothing

    @pass_context
    def _literal(self, context: Context, text: str) -> _Literal:
        literal = self._literals.get(text)
        if literal is None:
            literal = self._literals[text] = _Literal(from_template(text))
        return literal

    def _printed(self, value: Any) -> Any:
        # Literals are charged with the loops and macros around them.
        if type(value) is not _Literal:
            self._spend(1 + _steps(value))
        return _as_text(value) if type(value) is int else value

    def _check_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > _MAX_INTEGER_BITS:
                raise SecurityError("it makes a number that is too large")
            return
        for sized, times in ((left, right), (right, left)):
            if isinstance(sized, _SIZED) and isinstance(times, int):
                self._spend(len(sized) * max(times, 0) // CHARACTERS_PER_STEP)

    def _charged(self, function: Callable[..., Any], *, pads: bool) -> Callable[..., Any]:
        # `wraps` keeps the attributes by which Jinja knows that a filter wants its context.
        @wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            self._spend(1 + sum(map(_steps, args)))
            if pads:
                _check_widths((*args, *kwargs.values()))
                for text in args:
                    if isinstance(text, str):
                        _check_format(text)
            result = function(*args, **kwargs)
            self._spend(_steps(result))
            return _traced(result, (*args, *kwargs.values()))

        return charged


_REPEAT, _CONCAT, _CHARGE, _LITERAL = "_repeat", "_concat", "_charge", "_literal"


class _Literal(TemplateText):
    """A text that stands in the template as it is."""


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's text for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _PlainDict:
    """`dict` for templates: callable, without the type behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _PlainNamespace(Namespace):
    """`namespace` for templates: no attribute that starts with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # As Jinja's own, so that `namespace(self=...)` works.
        self, *positional = args
        attributes = dict(*positional, **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"it stores the attribute {name!r} on a namespace")


def _check_widths(values: Iterable[Any]) -> None:
    if any(isinstance(value, int) and value > _MAX_WIDTH for value in values):
        raise SecurityError("it asks for text that is too wide")


def _check_format(text: str) -> None:
    if _WIDE_FIELD.search(text):
        raise SecurityError("it asks for text that is too wide")


def _check_power(base: Any, exponent: Any) -> None:
    if (
        isinstance(base, int)
        and isinstance(exponent, int)
        and base.bit_length() * exponent > _MAX_INTEGER_BITS
    ):
        raise SecurityError("it makes a number that is too large")


def _steps(value: Any) -> int:
    return len(value) // CHARACTERS_PER_STEP if isinstance(value, _SIZED) else 0


def _literal_steps(node: nodes.Node) -> int:
    literals = node.find_all(nodes.TemplateData)
    return sum(len(literal.data) for literal in literals) // CHARACTERS_PER_STEP


def _filtered(node: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(
        cast("nodes.Expr", node), name, list(args), [], None, None, lineno=node.lineno
    )


def _rewrite(node: nodes.Node) -> None:
    """Make the template's own texts `TemplateText`, and each `a ~ b` a filter, because the sandbox
    cannot intercept that operator."""
    for field, value in node.iter_fields():
        if isinstance(value, nodes.Node):
            _rewrite(value)
            setattr(node, field, _rewritten(value, node))
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, nodes.Node):
                    _rewrite(item)
            setattr(node, field, [_rewritten(item, node) for item in value])


# Texts here are compared or looked up, and never printed.
_SILENT = (nodes.Getitem, nodes.Compare, nodes.Operand, nodes.Test)


def _rewritten(value: Any, parent: nodes.Node) -> Any:
    if isinstance(value, nodes.Concat):
        return _filtered(nodes.List(value.nodes, lineno=value.lineno), _CONCAT)
    text = value.data if isinstance(value, nodes.TemplateData) else None
    if isinstance(value, nodes.Const) and not isinstance(parent, _SILENT):
        text = value.value
    if isinstance(text, str) and text:
        return _filtered(nodes.Const(text, lineno=value.lineno), _LITERAL)
    return value


def _as_text(value: Any) -> str:
    """`str`; a number counts as the template's, so that it may count its tokens (`<image_1>`)."""
    return from_template(str(value)) if type(value) is int else str(value)


def _traced(result: Any, inputs: tuple[Any, ...]) -> Any:
    """Give a plain result the template's origin where every text that went in has it."""
    if type(result) is not str or not result:
        return result
    texts = [value for value in inputs if isinstance(value, str)]
    others = [value for value in inputs if not isinstance(value, str | int | float | None)]
    known = texts and not others and all(map(is_template, texts))
    return from_template(result) if known else result


def _mark_safe(value: Any) -> Any:
    # Jinja's own makes a text of another class, whose origins would be lost; nothing is escaped.
    return value if isinstance(value, TemplateText) else Markup(value)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes HTML characters, which are text to a model.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
