"""Detectors that an app makes of a pattern, or of its own words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.privacy.finding import Finding

Check = Callable[[str], bool]


def _any(text: str) -> bool:
    return True


@dataclass(frozen=True)
class Pattern:
    """Matches of `expression` that pass `check`.

    Attributes:
        expression: its group `secret`, where it has one, is the private part.
    """

    kind: str
    expression: re.Pattern[str]
    check: Check = _any

    def find(self, text: str) -> Iterator[Finding]:
        """See `Detector.find`."""
        at = 0
        while found := self.expression.search(text, at):
            group: str | int = "secret" if "secret" in self.expression.groupindex else 0
            if self.check(found[group]):
                yield Finding(self.kind, found.start(group), found.end(group))
                at = max(found.end(), found.start() + 1)
            else:
                # A real number may begin inside of one that fails the check.
                at = found.start() + 1


class Terms:
    """An app's own words: names of people, customers, projects. Letter case does not matter.

    Raises:
        InvalidOption: a term is empty, or `kind` is not a word in capitals.
    """

    def __init__(self, terms: Iterable[str], *, kind: str = "TERM") -> None:
        words = sorted({term.strip() for term in terms}, key=lambda term: (-len(term), term))
        if "" in words:
            raise InvalidOption("A private term is empty.", hint="Leave it out.")
        check_kind(kind)
        self._kind = kind
        # Words are not found inside other words; in scripts without spaces there is no such edge.
        parts = [
            _edge(word[0], r"(?<![^\W_])") + _spaced(word) + _edge(word[-1], r"(?![^\W_])")
            for word in words
        ]
        self._expression = re.compile("|".join(parts) or r"(?!)", re.IGNORECASE)

    def find(self, text: str) -> Iterator[Finding]:
        """See `Detector.find`."""
        for found in self._expression.finditer(text):
            yield Finding(self._kind, found.start(), found.end())


def check_kind(kind: str) -> None:
    """Raise InvalidOption unless `kind` can name a placeholder."""
    if not re.fullmatch(r"[A-Z]{2,20}(?:_[A-Z]{1,20})?", kind):
        raise InvalidOption(
            f"The kind of a private term must be a word in capitals, not {kind!r}.",
            hint="For example CUSTOMER or PROJECT_NAME.",
        )


def _edge(letter: str, expression: str) -> str:
    return expression if letter.isascii() and letter.isalnum() else ""


def _spaced(word: str) -> str:
    return r"\s+".join(re.escape(part) for part in word.split())
