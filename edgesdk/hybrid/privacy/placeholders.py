"""Writes placeholders, and finds them again in what a model wrote."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

# The kind of text that reads as a placeholder without being one. It is hidden too, so that it comes
# back as it was.
LITERAL = "TEXT"
# The kind of a private number in JSON. Its placeholder stands in quotes, which go with it.
JSON_NUMBER = "JSON_NUMBER"
RESERVED_KINDS = frozenset({LITERAL, JSON_NUMBER})

_OPEN, _CLOSE = r"[<\[{＜【]", r"[>\]}＞】]"
# Between the words of a kind, and before the number.
_JOINT = r"[\s_\-\\#:]{0,3}"
_NUMBER = r"[0-9]{1,9}"


@dataclass(frozen=True)
class Placeholder:
    """Written as `<EMAIL_412>`.

    Attributes:
        kind: words in capitals, joined by underscores.
    """

    kind: str
    number: int

    def __str__(self) -> str:
        return f"<{self.kind}_{self.number}>"


@dataclass(frozen=True)
class PlaceholderMatch:
    """A part of a text that reads as a placeholder."""

    placeholder: Placeholder
    start: int
    end: int


class PlaceholderPattern:
    """Finds placeholders of some kinds, also where case, spaces or brackets came out otherwise."""

    def __init__(self, kinds: Iterable[str]) -> None:
        self._by_letters = {_letters(kind): kind for kind in kinds}
        longest_first = sorted(self._by_letters.values(), key=len, reverse=True)
        self._has_numbers = JSON_NUMBER in self._by_letters.values()
        either = "|".join(_JOINT.join(kind.split("_")) for kind in longest_first) or r"(?!)"
        self._whole = re.compile(
            rf"(?P<open>{_OPEN}\s?)?(?<![^\W\d_])(?P<kind>{either}){_JOINT}"
            rf"(?P<number>{_NUMBER})(?![0-9])(?:\s?(?P<close>{_CLOSE}))?",
            re.IGNORECASE,
        )
        growing = "|".join(_growing(kind) for kind in longest_first) or r"(?!)"
        self._beginning = re.compile(
            rf"(?:{_OPEN}\s?(?:{growing})?|(?<![^\W\d_])(?:{growing}))\Z", re.IGNORECASE
        )

    def find_all(self, text: str) -> list[PlaceholderMatch]:
        """Find all parts of `text` that read as placeholders, in order."""
        found = []
        for match in self._whole.finditer(text):
            start, end = match.span()
            opened, closed = match["open"], match["close"]
            # Brackets belong to it in pairs. One alone does only if it is of the kind that
            # placeholders are written in: others enclose more than the placeholder.
            if opened and not closed and opened[0] not in "<＜":
                start = match.start("kind")
            if closed and not opened and closed not in ">＞":
                end = match.end("number")
            kind = self._by_letters[_letters(match["kind"])]
            if kind == JSON_NUMBER and text[start - 1 : start] == text[end : end + 1] == '"':
                start, end = start - 1, end + 1
            found.append(PlaceholderMatch(Placeholder(kind, int(match["number"])), start, end))
        return found

    def settled_length(self, text: str) -> int:
        """Return how much of `text` reads the same whatever follows it."""
        growing = self._beginning.search(text)
        settled = len(text) if growing is None else growing.start()
        # The quotes around a number may go with it.
        if self._has_numbers and text[settled - 1 : settled] == '"':
            settled -= 1
        for match in self._whole.finditer(text):
            start, end = match.span()
            if self._has_numbers and text[start - 1 : start] == '"':
                start, end = start - 1, end + 1
            if start < settled < end or end >= len(text):
                return min(settled, start)
        return settled


@lru_cache(maxsize=32)
def placeholder_pattern(kinds: frozenset[str]) -> PlaceholderPattern:
    """Return the pattern for `kinds`; it is compiled once."""
    return PlaceholderPattern(kinds)


def _letters(kind: str) -> str:
    return re.sub(r"[\W_]", "", kind).upper()


def _growing(kind: str) -> str:
    """Return an expression that every beginning of a placeholder of this kind matches, to the end
    of the text."""
    atoms: list[str] = []
    for index, word in enumerate(kind.split("_")):
        atoms += ([_JOINT] if index else []) + list(word)
    atoms += [_JOINT, "[0-9]{0,9}", r"\s?"]
    expression = ""
    for atom in reversed(atoms[1:]):
        expression = f"(?:{atom}{expression})?"
    return atoms[0] + expression
