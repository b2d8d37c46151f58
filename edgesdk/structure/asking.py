"""What a caller asks for besides the prompt: decoding options, and the answer's form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgesdk.decode.options import OptionChanges, Options, options_from
from edgesdk.errors import InvalidOption

FORMS = ("schema", "regex", "choices", "grammar")


class AskChanges(OptionChanges, total=False):
    """The fields of `Options` as keyword arguments, and at most one form of the answer.

    schema: a pydantic model, dataclass, TypedDict or other type that pydantic knows, or a JSON
        Schema (draft 2020-12) as a dict. The reply's `parsed` is an instance, or the JSON value.
        Properties come in the schema's order, without whitespace between them.
    regex: a regular expression (Rust's syntax, without look-around) that the whole answer matches.
    choices: the answer is one of these texts.
    grammar: a Lark grammar with a rule `start`, in llguidance's dialect.
    """

    schema: Any
    regex: str
    choices: Sequence[str]
    grammar: str


@dataclass(frozen=True)
class Structure:
    """A form that answers are held to.

    Attributes:
        grammar: what llguidance compiles; known to be valid. None for any text.
        read: from the whole text of an answer to its value.
    """

    grammar: str | None
    read: Callable[[str], Any]


class Asked(NamedTuple):
    """The two sides of one request's keyword arguments."""

    options: Options
    structure: Structure | None


def asked_from(changes: Mapping[str, object]) -> Asked:
    """Options and form from keyword arguments.

    Raises:
        InvalidOption: an option is unknown or out of its range, more than one form is asked for,
            or the form cannot be enforced.
        MissingExtra: a form is asked for, and llguidance is not installed.
    """
    forms = [name for name in FORMS if changes.get(name) is not None]
    options = options_from({name: value for name, value in changes.items() if name not in FORMS})
    if not forms:
        return Asked(options, None)
    if len(forms) > 1:
        raise InvalidOption(
            f"{' and '.join(repr(name) for name in forms)} exclude each other.",
            hint="An answer has one form: give one of them.",
        )
    if options.stops:
        raise InvalidOption(
            f"'stop' and {forms[0]!r} exclude each other: a stop text would cut the answer short.",
            hint="Leave 'stop' out; the answer ends where its form does.",
        )
    from edgesdk.structure.forms import structure_of

    return Asked(options, structure_of(forms[0], changes[forms[0]]))
