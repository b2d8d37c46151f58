"""From what the caller calls a form to a grammar that llguidance is known to accept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgesdk.errors import InvalidOption
from edgesdk.panics import panics_as
from edgesdk.structure.asking import Structure
from edgesdk.structure.guidance import guidance
from edgesdk.structure.schema import schema_structure


def structure_of(form: str, value: Any) -> Structure:
    """The structure that `form` ("schema", "regex", "choices" or "grammar") asks for.

    Raises:
        InvalidOption: it cannot be enforced.
        MissingExtra: llguidance is not installed.
    """
    if form == "schema":
        return schema_structure(value)
    matcher = guidance().LLMatcher
    if form == "choices":
        return Structure(matcher.grammar_from_regex(_alternatives(value)), read=str)
    if not isinstance(value, str):
        raise InvalidOption(f"{form!r} is {value!r}, not a text.")
    make = matcher.grammar_from_regex if form == "regex" else matcher.grammar_from_lark
    with panics_as("llguidance", InvalidOption):
        grammar: str = make(value)
        problem = matcher.validate_grammar(grammar)
    if problem:
        raise InvalidOption(
            f"{form!r} cannot be enforced: {_one_line(problem)}",
            hint="The syntax is Rust's, without look-around and back-references."
            if form == "regex"
            else "The syntax is llguidance's dialect of Lark, with a rule 'start'.",
        )
    return Structure(grammar, read=str)


def _alternatives(choices: Any) -> str:
    if isinstance(choices, str) or not isinstance(choices, Sequence) or not choices:
        raise InvalidOption(f"'choices' is {choices!r}, not a list of texts.", hint="Name some.")
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise InvalidOption(f"'choices' has {choice!r}, which is not a text to answer with.")
        if any("\ud800" <= character <= "\udfff" for character in choice):
            raise InvalidOption(f"'choices' has {choice!r}, which is not valid Unicode.")
    return "|".join("".join(map(_literal, choice)) for choice in choices)


def _literal(character: str) -> str:
    """A character in a regular expression, where it must stand for nothing but itself."""
    plain = character.isascii() and character.isalnum()
    return character if plain else f"\\x{{{ord(character):x}}}"


def _one_line(problem: str) -> str:
    """llguidance's message without its picture of the place."""
    lines = [line.strip() for line in problem.splitlines()]
    return " ".join(line for line in lines if line.strip("^ ") and " | " not in line)
