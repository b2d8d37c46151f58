"""Finds what is private in texts, however it is written, and also where it is split over them."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

from edgesdk.hybrid.privacy.detectors import Detector, PrivateSpan
from edgesdk.hybrid.privacy.normalization import escapes_in, read_json, readings

# Checking takes about a second for each million characters. What is longer stays on the device.
MAX_CHARACTERS = 4_000_000
# How apps and endpoints join the parts of a message, and what a person reads between them.
_JOINTS = ("", " ")


class TextTooLarge(ValueError):
    """The text is too large to be checked. Never leaves the SDK."""


def find_private(detectors: Iterable[Detector], text: str) -> list[PrivateSpan]:
    """Find private spans in all readings of a text; they may overlap.

    No span begins or ends within an escape, such as the backslash and the n of a line feed: what
    is left of the text can be decoded as before.

    Raises:
        TextTooLarge: see `MAX_CHARACTERS`.
        Exception: a detector's.
    """
    _check_size(len(text))
    found = []
    for reading in readings(text):
        for detector in detectors:
            for span in detector.find(reading.text):
                if span.start < span.end:
                    start, end = reading.place(span.start, span.end)
                    found.append(PrivateSpan(span.kind, start, end))
    return _around_escapes(found, text) if found else found


def find_in_parts(detectors: Iterable[Detector], texts: Sequence[str]) -> list[list[PrivateSpan]]:
    """Find private spans in each text, and those that begin in one and end in a later one.

    Raises:
        TextTooLarge: see `MAX_CHARACTERS`; for all texts together.
        Exception: a detector's.
    """
    detectors = tuple(detectors)
    _check_size(sum(map(len, texts)))
    found = [find_private(detectors, text) for text in texts]
    if sum(map(bool, texts)) < 2:
        return found
    for joint in _JOINTS:
        starts, at = [], 0
        for text in texts:
            starts.append(at)
            at += len(text) + len(joint)
        for span in find_private(detectors, joint.join(texts)):
            first = bisect.bisect_right(starts, span.start) - 1
            last = bisect.bisect_right(starts, span.end - 1) - 1
            if first == last:
                continue
            for index in range(first, last + 1):
                start = max(span.start - starts[index], 0)
                end = min(span.end - starts[index], len(texts[index]))
                if start < end:
                    found[index].append(PrivateSpan(span.kind, start, end))
    return found


def kinds_of(detectors: Iterable[Detector], texts: Sequence[str]) -> frozenset[str]:
    """Return the kinds of what is private in texts that belong together."""
    spans = find_in_parts(detectors, [read_json(text).reading.text for text in texts])
    return frozenset(span.kind for each in spans for span in each)


def _check_size(characters: int) -> None:
    if characters > MAX_CHARACTERS:
        raise TextTooLarge(f"A text of {characters} characters is too large to be checked.")


def _around_escapes(spans: list[PrivateSpan], text: str) -> list[PrivateSpan]:
    escapes = escapes_in(text)
    if not escapes:
        return spans
    starts = [start for start, _ in escapes]
    moved = []
    for span in spans:
        start, end = span.start, span.end
        before = bisect.bisect_right(starts, start) - 1
        if before >= 0 and start < escapes[before][1]:
            start = escapes[before][0]
        after = bisect.bisect_left(starts, end) - 1
        if after >= 0 and end < escapes[after][1]:
            end = escapes[after][1]
        moved.append(PrivateSpan(span.kind, start, end))
    return moved
