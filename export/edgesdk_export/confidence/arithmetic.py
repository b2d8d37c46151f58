"""Compute one line of Python arithmetic by its syntax tree; nothing of it is ever executed."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from fractions import Fraction

# Of a line, and of any number on the way: more is a mistake, and would only cost time.
_MAX_CHARACTERS = 400
_MAX_BITS = 256
_MAX_EXPONENT = 64

_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction | int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def compute(line: str) -> Fraction | None:
    """Compute an expression of numbers, + - * / // % ** and brackets, exactly.

    `print(...)` around it and `name = ` before it are allowed, as models write them.

    Returns:
        The value; None where the line is anything else, divides by zero, or grows too large.
    """
    if len(line) > _MAX_CHARACTERS:
        return None
    try:
        body = ast.parse(line.strip()).body
        return _value(_expression(body[0])) if len(body) == 1 else None
    except (SyntaxError, ValueError, ZeroDivisionError, MemoryError, RecursionError):
        return None


def _expression(line: ast.stmt) -> ast.expr:
    if isinstance(line, ast.Assign) and len(line.targets) == 1:
        return line.value
    if not isinstance(line, ast.Expr):
        raise ValueError("no expression")
    call = line.value
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print":
        if len(call.args) != 1 or call.keywords:
            raise ValueError("more than one value")
        return call.args[0]
    return call


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            # As it is written: 0.1 is a tenth.
            found = Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            found = -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            found = _value(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            found = _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            found = Fraction(_OPERATORS[type(op)](_value(left), _value(right)))
        case _:
            raise ValueError("not arithmetic")
    if max(found.numerator.bit_length(), found.denominator.bit_length()) > _MAX_BITS:
        raise ValueError("too large")
    return found


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > _MAX_EXPONENT:
        raise ValueError("no small whole exponent")
    return Fraction(base ** int(exponent))
