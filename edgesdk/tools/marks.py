"""Find the marks that calls are written with, as models write them."""

from __future__ import annotations

import re

# A mark, as <tool_call> or [TOOL_CALLS], at the beginning of a text.
_MARK = re.compile(r"\s*(?:<[^<>\n]*(?:>|\Z)|\[[^\[\]\s]+\]|\S+)")


def loose(text: str) -> str:
    """A pattern of a text of marks, with more or less space in it than models are to write."""
    return r"\s*".join(map(re.escape, text.split()))


def first_mark(text: str) -> str:
    """What a text of marks begins with, up to the end of its first mark."""
    found = _MARK.match(text)
    return "" if found is None else found[0].strip()
