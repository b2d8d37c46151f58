"""Replaces private values by placeholders, and restores them in replies."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edgesdk.hybrid.privacy.detectors import Detector, PrivateSpan, merge_overlapping
from edgesdk.hybrid.privacy.placeholders import Placeholder, PlaceholderPattern, placeholder_pattern

# Text that reads as a placeholder without being one is hidden too, so that it comes back as it was.
_LITERAL = "TEXT"
_FIRST_NUMBERS = range(100, 900)


class Redactor:
    """Redacts the texts of one conversation.

    The same value has the same placeholder in all of them. Numbers start anywhere between 100 and
    900, by chance: a value has another name in the next conversation, and a placeholder from there
    means nothing here. Several threads may use it.

    Args:
        detectors: of what is private; an error of one comes out of `redact`.
        values: those of an earlier redactor, to go on where it was.
        seed: of the first number, for a text that must read the same when it is sent again.
    """

    def __init__(
        self,
        detectors: Iterable[Detector],
        *,
        values: Mapping[Placeholder, str] | None = None,
        seed: str | None = None,
    ) -> None:
        self._detectors = tuple(detectors)
        self._values = dict(values or {})
        self._placeholders = {
            (placeholder.kind, value): placeholder for placeholder, value in self._values.items()
        }
        source = random.SystemRandom() if seed is None else random.Random(seed)
        self._next = source.choice(_FIRST_NUMBERS)
        self._numbers = {placeholder.number for placeholder in self._values}
        self._guard = threading.Lock()

    @property
    def values(self) -> Mapping[Placeholder, str]:
        """What each placeholder stands for. These are the secrets themselves."""
        return dict(self._values)

    @property
    def pattern(self) -> PlaceholderPattern:
        """The pattern that finds the placeholders of this conversation."""
        return placeholder_pattern(frozenset(placeholder.kind for placeholder in self._values))

    def redact(self, text: str) -> str:
        """Replace each private span by a placeholder; `restore` gives exactly `text` back."""
        found = [span for detector in self._detectors for span in detector.find(text)]
        with self._guard:
            # No later placeholder may have a number that this text has for something else.
            self._numbers.update(map(int, re.findall(r"[0-9]{1,9}", text)))
            found += [
                PrivateSpan(_LITERAL, match.start, match.end)
                for match in self.pattern.find_all(text)
                if match.placeholder in self._values
            ]
            pieces = []
            at = 0
            for span in merge_overlapping(found):
                value = text[span.start : span.end]
                pieces += [text[at : span.start], str(self._placeholder(span.kind, value))]
                at = span.end
        return "".join([*pieces, text[at:]])

    def value(self, placeholder: Placeholder) -> str | None:
        """Return what `placeholder` stands for; None if it is none of this conversation's."""
        return self._values.get(placeholder)

    def _placeholder(self, kind: str, value: str) -> Placeholder:
        known = self._placeholders.get((kind, value))
        if known is not None:
            return known
        while self._next in self._numbers:
            self._next += 1
        made = Placeholder(kind, self._next)
        self._numbers.add(self._next)
        self._placeholders[kind, value] = made
        self._values[made] = value
        return made


def restore(redactor: Redactor, text: str, escape: Callable[[str], str] = str) -> str:
    """Replace each placeholder of the conversation by its value.

    Args:
        escape: makes of a value what stands for it in such a text; `json_escaped` in JSON.
    """
    pieces = []
    at = 0
    for match in redactor.pattern.find_all(text):
        value = redactor.value(match.placeholder)
        if value is not None:
            pieces += [text[at : match.start], escape(value)]
            at = match.end
    return "".join([*pieces, text[at:]])


def json_escaped(value: str) -> str:
    """Escape a text for the inside of a JSON string."""
    return json.dumps(value, ensure_ascii=False)[1:-1]


def restore_json(redactor: Redactor, value: Any) -> Any:
    """Restore all texts of a JSON value, keys too: the arguments of a tool call."""
    if isinstance(value, str):
        return restore(redactor, value)
    if isinstance(value, list):
        return [restore_json(redactor, item) for item in value]
    if isinstance(value, dict):
        return {restore(redactor, key): restore_json(redactor, item) for key, item in value.items()}
    return value


class StreamRestorer:
    """Restores a reply that comes in pieces, cut anywhere."""

    def __init__(self, redactor: Redactor, escape: Callable[[str], str] = str) -> None:
        self._redactor = redactor
        self._escape = escape
        self._held = ""

    def feed(self, piece: str) -> str:
        """Return what is certain after `piece`; the start of a placeholder is kept back."""
        text = self._held + piece
        settled = self._redactor.pattern.settled_length(text)
        self._held = text[settled:]
        return restore(self._redactor, text[:settled], self._escape)

    def flush(self) -> str:
        """Return what is left at the end of the reply."""
        rest, self._held = self._held, ""
        return restore(self._redactor, rest, self._escape)
