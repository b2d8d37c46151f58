"""Long numbers that people write in groups."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgesdk.hybrid.privacy.finding import Finding

_SEPARATORS = " -\u00a0"


@dataclass(frozen=True)
class Grouped:
    """Neighbouring groups that together, written as one, pass `check`.

    Other numbers may stand beside them ("4111 1111 1111 1111 12/27"), so every run of whole groups
    is tried, the longest first.

    Attributes:
        group: matches one group.
        shortest, longest: characters of all groups together.
    """

    kind: str
    group: re.Pattern[str]
    shortest: int
    longest: int
    check: Callable[[str], bool]

    def find(self, text: str) -> Iterator[Finding]:
        """See `Detector.find`."""
        groups = [found.span() for found in self.group.finditer(text)]
        at = 0
        while at < len(groups):
            last = self._last(text, groups, at)
            if last is None:
                at += 1
            else:
                yield Finding(self.kind, groups[at][0], groups[last][1])
                at = last + 1

    def _last(self, text: str, groups: list[tuple[int, int]], first: int) -> int | None:
        """The last group of what begins with group `first`; None if nothing does."""
        joined = ""
        fitting = None
        for index in range(first, len(groups)):
            start, end = groups[index]
            if index > first and not _adjacent(text, groups[index - 1][1], start):
                break
            joined += text[start:end]
            if len(joined) > self.longest:
                break
            if len(joined) >= self.shortest and self.check(joined):
                fitting = index
        return fitting


def _adjacent(text: str, end: int, start: int) -> bool:
    return start - end == 1 and text[end] in _SEPARATORS
