"""Detectors find private spans in a text, however it is written, and also where it is split."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.privacy.normalization import escapes_in, normalized, read_json, readings
from edgesdk.system.checks import checked_choice

# The kind of text that reads as a placeholder without being one. It is hidden too, so that it comes
# back as it was.
LITERAL = "TEXT"
# The kind of a private number in JSON. Its placeholder stands in quotes, which go with it.
JSON_NUMBER = "JSON_NUMBER"
_RESERVED_KINDS = frozenset({LITERAL, JSON_NUMBER})


@dataclass(frozen=True)
class PrivateSpan:
    """A part of a text that is private.

    Attributes:
        kind: what it is, in capitals and underscores; the placeholder is named after it.
        start: index of its first character.
        end: index after its last.
    """

    kind: str
    start: int
    end: int


class Detector(Protocol):
    """Finds private spans. An error of it blocks the upload.

    It may say in an attribute `kind` (a word) or `kinds` (several) what it finds, so that a policy
    can have rules for that.
    """

    def find(self, text: str) -> Iterable[PrivateSpan]:
        """Find the spans in `text`, in any order; they may overlap."""


def kinds_found_by(detector: Detector) -> frozenset[str]:
    """Return the kinds that a detector says that it finds."""
    kind = getattr(detector, "kind", None)
    return frozenset(getattr(detector, "kinds", None) or (() if kind is None else (kind,)))


def merge_overlapping(spans: Iterable[PrivateSpan]) -> list[PrivateSpan]:
    """Sort the spans, and replace those that overlap by one that covers them all.

    It has the kind of the longest of them.
    """
    merged: list[PrivateSpan] = []
    longest = 0
    for span in sorted(spans, key=lambda one: (one.start, -one.end)):
        if span.end <= span.start:
            continue
        length = span.end - span.start
        last = merged[-1] if merged else None
        if last is None or span.start >= last.end:
            merged.append(span)
            longest = length
            continue
        kind = span.kind if length > longest else last.kind
        longest = max(longest, length)
        merged[-1] = PrivateSpan(kind, last.start, max(last.end, span.end))
    return merged


@dataclass(frozen=True)
class Pattern:
    """Finds the matches of `expression` that pass `check`.

    Attributes:
        expression: its group `secret`, or else `quoted`, is the private part, where it has one.
    """

    kind: str
    expression: re.Pattern[str]
    check: Callable[[str], bool] = lambda text: True

    def find(self, text: str) -> Iterator[PrivateSpan]:
        """See `Detector.find`."""
        groups = self.expression.groupindex
        at = 0
        while found := self.expression.search(text, at):
            group = next((g for g in ("secret", "quoted") if g in groups and found[g]), 0)
            if self.check(found[group]):
                yield PrivateSpan(self.kind, found.start(group), found.end(group))
                at = max(found.end(), found.start() + 1)
            else:
                # A real number may begin inside of one that fails the check.
                at = found.start() + 1


class Terms:
    """Finds an app's own words: names of people, customers, projects.

    Letter case does not matter, nor whether spaces, a hyphen, a dot, an underscore, a plus or
    nothing stands between words, nor in which form of Unicode a letter is written.

    Raises:
        InvalidOption: a term is empty, or `kind` is not a word in capitals.
    """

    def __init__(self, terms: Iterable[str], *, kind: str = "TERM") -> None:
        stripped = {normalized(term).strip() for term in terms}
        words = sorted(stripped, key=lambda term: (-len(term), term))
        if "" in words:
            raise InvalidOption("A private term is empty.", hint="Leave it out.")
        check_kind(kind)
        self.kind = kind
        # Words are not found inside other words; in scripts without spaces there is no such edge.
        parts = [
            _edge(word[0], r"(?<![^\W_])") + _spaced(word) + _edge(word[-1], r"(?![^\W_])")
            for word in words
        ]
        self._expression = re.compile("|".join(parts) or r"(?!)", re.IGNORECASE)

    def find(self, text: str) -> Iterator[PrivateSpan]:
        """See `Detector.find`."""
        for found in self._expression.finditer(text):
            yield PrivateSpan(self.kind, found.start(), found.end())


def check_kind(kind: str) -> None:
    """Raise InvalidOption unless `kind` can name a placeholder."""
    if kind in _RESERVED_KINDS or not re.fullmatch(r"[A-Z]{2,20}(?:_[A-Z]{1,20})?", kind):
        raise InvalidOption(
            f"The kind of a private term must be a word in capitals, not {kind!r}.",
            hint="For example CUSTOMER or PROJECT_NAME.",
        )


def _edge(letter: str, expression: str) -> str:
    return expression if letter.isascii() and letter.isalnum() else ""


def _spaced(word: str) -> str:
    parts = re.split(r"(?<=\w)[\s_+\-]+(?=\w)", word)
    return r"[\s_+.\-]*".join(re.escape(part) for part in parts)


@dataclass(frozen=True)
class GroupedNumber:
    """Finds long numbers that people write in groups, such as those of cards.

    Neighbouring groups are a number where together, written as one, they pass `check`. Up to three
    spaces, hyphens, slashes and underscores stand between two of them, or one dot between all.

    Other numbers may stand beside them ("4111 1111 1111 1111 12/27"), so every run of whole groups
    is tried, the longest first.

    Attributes:
        group: matches one group.
        min_length, max_length: characters of all groups together.
        min_group: characters of each group but the last.
        first: how the first group begins.
    """

    kind: str
    group: re.Pattern[str]
    min_length: int
    max_length: int
    check: Callable[[str], bool]
    min_group: int = 1
    first: re.Pattern[str] = re.compile("")

    def find(self, text: str) -> Iterator[PrivateSpan]:
        """See `Detector.find`."""
        groups = [found.span() for found in self.group.finditer(text)]
        at = 0
        while at < len(groups):
            last = None
            if self.first.match(text, *groups[at]):
                last = self._last(text, groups, at)
            if last is None:
                at += 1
            else:
                yield PrivateSpan(self.kind, groups[at][0], groups[last][1])
                at = last + 1

    def _last(self, text: str, groups: list[tuple[int, int]], first: int) -> int | None:
        """Return the last group of a number that begins with group `first`; None if none does."""
        if _IN_NUMBER.search(text, max(0, groups[first][0] - 2), groups[first][0]):
            return None
        joined, dotted = "", None
        fitting = None
        for index in range(first, len(groups)):
            start, end = groups[index]
            if index > first:
                between = text[groups[index - 1][1] : start]
                if not _SEPARATOR.fullmatch(between) or dotted not in (None, between == "."):
                    break
                dotted = between == "."
            joined += text[start:end]
            if len(joined) > self.max_length:
                break
            if len(joined) >= self.min_length and self.check(joined):
                fitting = index
            if end - start < self.min_group:
                break
        return fitting


_SEPARATOR = re.compile(r"[\s_/\-]{1,3}|\.")
# What comes after it is the rest of a decimal or of a hexadecimal number.
_IN_NUMBER = re.compile(r"(?:[0-9]\.|0[xX])\Z")


_URL = re.compile(r"(?<![A-Za-z0-9+.\-])[A-Za-z][A-Za-z0-9+.\-]{1,20}://[^\s<>\"']+")
# RFC 3986: user information stands before the host, which ends at the first of / ? and #.
_USER = re.compile(r"[^:]+://[^/?#@]+@")
_TOKEN = re.compile(
    r"[?&#;](?:[\w\-]*(?:token|key|secret|password|passwd|pwd|signature|auth)|sig)=[^&#]",
    re.IGNORECASE,
)


class PrivateUrls:
    """Finds URLs with a password, or with a secret among their parameters."""

    kind = "URL"

    def find(self, text: str) -> Iterator[PrivateSpan]:
        """See `Detector.find`."""
        for found in _URL.finditer(text):
            url = found[0]
            if _USER.match(url) or _TOKEN.search(url):
                yield PrivateSpan("URL", found.start(), found.end())


class Analyzer(Protocol):
    """The part of `presidio_analyzer.AnalyzerEngine` that is used."""

    def analyze(
        self, text: str, language: str, *, entities: list[str], score_threshold: float
    ) -> Sequence[Any]:
        """Results with `entity_type`, `start`, `end`."""


@dataclass(frozen=True)
class Presidio:
    """Finds names and places with Microsoft's presidio (the extra `presidio`).

    The analyzer is the app's to make, because names are found by a language model that the app
    chooses: presidio's own default would fetch one when it is first used.

    Attributes:
        analyzer: a `presidio_analyzer.AnalyzerEngine`; several threads call it.
        entities: presidio's names of what to look for; they become the kinds of spans.
        language: that the analyzer has a model for.
        min_score: presidio's score from which on something counts, 0 to 1.

    Raises:
        InvalidOption: the analyzer knows no such entity.
    """

    analyzer: Analyzer
    entities: tuple[str, ...] = ("PERSON", "LOCATION")
    language: str = "en"
    min_score: float = 0.5

    def __post_init__(self) -> None:
        supported = getattr(self.analyzer, "get_supported_entities", None)
        if supported is not None:
            known = sorted(supported(self.language))
            for entity in self.entities:
                checked_choice("An entity for presidio", entity, known)

    @property
    def kinds(self) -> frozenset[str]:
        """See `Detector`."""
        return frozenset(self.entities)

    def find(self, text: str) -> Iterator[PrivateSpan]:
        """See `Detector.find`."""
        found = self.analyzer.analyze(
            text, self.language, entities=list(self.entities), score_threshold=self.min_score
        )
        for one in found:
            yield PrivateSpan(one.entity_type, one.start, one.end)


# Checking takes about a second for each million characters. What is longer stays on the device.
MAX_CHARACTERS = 4_000_000
# How apps and endpoints join the parts of a message, and what a person reads between them.
_JOINTS = ("", " ")


class TextTooLarge(ValueError):
    """The text is too large to be checked. Never leaves the SDK."""


def find_private(detectors: Iterable[Detector], text: str) -> list[PrivateSpan]:
    """Find private spans in all readings of a text; they may overlap.

    No span begins or ends within an escape, such as the backslash and the n of a line feed: what
    is left of the text can be decoded as before. It raises what `find_in_parts` does.
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
