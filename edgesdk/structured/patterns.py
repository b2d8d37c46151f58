"""Write regular expressions so that every dialect reads them alike."""

from __future__ import annotations

import copy
from typing import Any

from edgesdk.structured.json_schema import subschemas

_SPACES = r"\t\n\x0b\x0c\r \xa0\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}"
# Python's separators, a line end that is none in ECMA-262, a mark that is a space only there.
_ANY_SPACES = _SPACES + r"\x1c-\x1f\x85\u{feff}"
_DIGITS, _ANY_DIGITS = "0-9", r"\p{Nd}"
_LETTERS, _ANY_LETTERS = "0-9A-Za-z_", r"\p{Alphabetic}\p{L}\p{M}\p{N}\p{Pc}\u{200c}\u{200d}"
# By letter: what all dialects count in, and what any of them does.
_CLASSES = {
    "s": (_SPACES, _ANY_SPACES),
    "d": (_DIGITS, _ANY_DIGITS),
    "w": (_LETTERS, _ANY_LETTERS),
}


def with_portable_patterns(schema: dict[str, Any]) -> dict[str, Any]:
    """Copy a JSON Schema, with `portable_pattern` applied to each of its patterns."""
    found = copy.deepcopy(schema)
    for _, part in list(subschemas(found)):
        if isinstance(part.get("pattern"), str):
            part["pattern"] = portable_pattern(part["pattern"])
        named = part.get("patternProperties")
        if isinstance(named, dict):
            part["patternProperties"] = {portable_pattern(key): named[key] for key in named}
    return found


def portable_pattern(pattern: str) -> str:
    """Spell out the classes of spaces, digits and letters of `pattern`, in Rust's dialect."""
    out: list[str] = []
    at, inside, negated = 0, False, False
    while at < len(pattern):
        step = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        at += len(step)
        if len(step) == 2 and step[1].lower() in _CLASSES:
            out.append(_portable_class(step[1], inside=inside, negated=negated))
            continue
        if step == "[" and not inside:
            inside, negated = True, pattern.startswith("^", at)
            step += "^" * negated
            at += negated
            if pattern.startswith("]", at):
                # The first one is a character of the class.
                step += r"\]"
                at += 1
        elif step == "]" and inside:
            inside = False
        out.append(step)
    return "".join(out)


def _portable_class(letter: str, *, inside: bool, negated: bool) -> str:
    agreed, any_of_them = _CLASSES[letter.lower()]
    if letter.islower():
        # What a negated class leaves out should be out in every dialect.
        members = any_of_them if negated else agreed
        return members if inside else f"[{members}]"
    return f"[^{agreed if negated else any_of_them}]"
