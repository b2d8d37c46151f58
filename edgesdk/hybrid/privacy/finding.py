"""What a detector returns, and what a detector is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Finding:
    """A private stretch of a text.

    Attributes:
        kind: what it is, in capitals and underscores; the placeholder is named after it.
        start: index of its first character.
        end: index after its last.
    """

    kind: str
    start: int
    end: int


class Detector(Protocol):
    """Finds private stretches. What it raises blocks the upload."""

    def find(self, text: str) -> Iterable[Finding]:
        """All that it knows in `text`, in any order; findings may overlap."""


def separate(findings: Iterable[Finding]) -> list[Finding]:
    """Findings in order and without overlap.

    Where some overlap, one takes the whole stretch of all, so that nothing of any is left over; its
    kind is that of the longest of them.
    """
    separated: list[Finding] = []
    longest = 0
    for finding in sorted(findings, key=lambda one: (one.start, -one.end)):
        if finding.end <= finding.start:
            continue
        length = finding.end - finding.start
        last = separated[-1] if separated else None
        if last is None or finding.start >= last.end:
            separated.append(finding)
            longest = length
            continue
        kind = finding.kind if length > longest else last.kind
        longest = max(longest, length)
        separated[-1] = Finding(kind, last.start, max(last.end, finding.end))
    return separated
