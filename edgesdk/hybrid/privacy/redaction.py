"""Replaces private values by placeholders, and restores them in replies."""

from __future__ import annotations

import bisect
import json
import random
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from edgesdk.hybrid.privacy.detectors import (
    JSON_NUMBER,
    LITERAL,
    Detector,
    PrivateSpan,
    find_in_parts,
    merge_overlapping,
)
from edgesdk.hybrid.privacy.normalization import JsonText, read_json

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


_FIRST_NUMBERS = range(100, 900)
# A text that ends within a string of JSON, and how much of it is looked at.
_IN_JSON_STRING = re.compile(r'[{\[,:]\s*"(?:[^"\\\n]|\\.)*\Z')
_CONTEXT = 2_000


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
        # Of values that stood without escapes where JSON would need them.
        self._unescaped: set[Placeholder] = set()
        self._guard = threading.Lock()

    @property
    def values(self) -> Mapping[Placeholder, str]:
        """What each placeholder stands for. These are the secrets themselves."""
        return dict(self._values)

    @property
    def pattern(self) -> PlaceholderPattern:
        """The pattern that finds the placeholders of this conversation."""
        return placeholder_pattern(frozenset(placeholder.kind for placeholder in self._values))

    def redact(self, text: str, kinds: AbstractSet[str] | None = None) -> str:
        """Replace each private span by a placeholder; `restore` gives `text` back.

        JSON in the text stays JSON, and what a placeholder stands for there is the value, without
        escapes.

        Args:
            kinds: of what is replaced; None for all.

        Raises:
            TextTooLarge: see `edgesdk.hybrid.privacy.detectors`.
        """
        return self.redact_parts([text], kinds)[0]

    def redact_parts(
        self, texts: Sequence[str], kinds: AbstractSet[str] | None = None
    ) -> list[str]:
        """Redact texts that are read one after the other, such as the parts of a message.

        What begins in one and ends in a later one is found too, and replaced in each.
        """
        sources = [read_json(text) for text in texts]
        found = find_in_parts(self._detectors, [source.reading.text for source in sources])
        redacted = []
        with self._guard:
            for text, source, spans in zip(texts, sources, found, strict=True):
                chosen = [span for span in spans if kinds is None or span.kind in kinds]
                redacted.append(self._replaced(text, source, chosen))
        return redacted

    def redact_value(self, value: Any, kinds: AbstractSet[str] | None = None) -> Any:
        """Redact a JSON value, whose keys say what their values are, as in {"password": ...}.

        A number that is replaced becomes a text.
        """
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self.redact(value, kinds)
        if isinstance(value, int | float):
            written = json.dumps(value)
            hidden = self.redact(written, kinds)
            if hidden == written:
                return value
            # In a document it is a number, and comes back as one.
            [in_document] = json.loads(self.redact(f"[{written}]", kinds))
            return in_document if isinstance(in_document, str) else hidden
        written = json.dumps(value, ensure_ascii=False)
        hidden = self.redact(written, kinds)
        return value if hidden == written else json.loads(hidden)

    def value(self, placeholder: Placeholder) -> str | None:
        """Return what `placeholder` stands for; None if it is none of this conversation's."""
        return self._values.get(placeholder)

    def escapes(self, placeholder: Placeholder) -> bool:
        """Whether the value of `placeholder` is escaped where it is restored within JSON."""
        return placeholder not in self._unescaped

    def _replaced(self, text: str, source: JsonText, spans: list[PrivateSpan]) -> str:
        read = source.reading.text
        # No later placeholder may have a number that this text has for something else.
        self._numbers.update(map(int, re.findall(r"[0-9]{1,9}", read)))
        literals = [
            PrivateSpan(LITERAL, match.start, match.end)
            for match in self.pattern.find_all(read)
            if match.placeholder in self._values
        ]
        pieces = []
        at = 0
        for span in merge_overlapping([*spans, *literals]):
            for kind, start, end in _replaceable(span, source):
                value = read[start:end]
                placeholder = self._placeholder(kind, value)
                first, last = source.reading.place(start, end)
                bare = text[first:last] == value and value != json_escaped(value)
                if bare and _is_in_json_string(text, first):
                    self._unescaped.add(placeholder)
                written = f'"{placeholder}"' if kind == JSON_NUMBER else str(placeholder)
                pieces += [text[at:first], written]
                at = last
        return "".join([*pieces, text[at:]])

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


def _replaceable(span: PrivateSpan, source: JsonText) -> Iterator[tuple[str, int, int]]:
    """Yield the parts of a span that can be replaced so that JSON stays JSON: kind, start, end.

    In JSON these are the insides of strings, and whole numbers.
    """
    at = span.start
    for start, end in source.documents:
        if end <= at:
            continue
        if start >= span.end:
            break
        if at < start:
            yield span.kind, at, start
        first = bisect.bisect_right(source.tokens, at, key=lambda token: token.end)
        for token in source.tokens[first:]:
            if token.start >= min(span.end, end):
                break
            if token.is_number:
                yield JSON_NUMBER, token.start, token.end
            elif max(token.start, at) < min(token.end, span.end):
                yield span.kind, max(token.start, at), min(token.end, span.end)
        at = end
    if at < span.end:
        yield span.kind, at, span.end


def restore(redactor: Redactor, text: str, *, is_json: bool = False, before: str = "") -> str:
    """Replace each placeholder of the conversation by its value.

    In a string of JSON it is escaped for that.

    Args:
        is_json: whether all of the text is JSON; else it is guessed from what stands before a
            placeholder.
        before: the text that came before.
    """
    pieces = []
    at = 0
    whole = before + text
    for match in redactor.pattern.find_all(text):
        value = redactor.value(match.placeholder)
        if value is None:
            continue
        escaped = json_escaped(value)
        if escaped != value and not is_json:
            within = _is_in_json_string(whole, len(before) + match.start)
            escaped = escaped if within and redactor.escapes(match.placeholder) else value
        pieces += [text[at : match.start], escaped]
        at = match.end
    return "".join([*pieces, text[at:]])


def _is_in_json_string(text: str, at: int) -> bool:
    return _IN_JSON_STRING.search(text, max(0, at - _CONTEXT), at) is not None


def json_escaped(value: str) -> str:
    """Escape a text for the inside of a JSON string."""
    return json.dumps(value, ensure_ascii=False)[1:-1]


def restore_json(redactor: Redactor, value: Any) -> Any:
    """Restore all texts of a JSON value, keys too: the arguments of a tool call."""
    if isinstance(value, str):
        match = next(iter(redactor.pattern.find_all(value)), None)
        if match is not None and match.placeholder.kind == JSON_NUMBER:
            number = redactor.value(match.placeholder)
            if number is not None and (match.start, match.end) == (0, len(value)):
                return json.loads(number)
        return restore(redactor, value)
    if isinstance(value, list):
        return [restore_json(redactor, item) for item in value]
    if isinstance(value, dict):
        return {restore(redactor, key): restore_json(redactor, item) for key, item in value.items()}
    return value


class StreamRestorer:
    """Restores a reply that comes in pieces, cut anywhere.

    Args:
        is_json: see `restore`.
    """

    def __init__(self, redactor: Redactor, *, is_json: bool = False) -> None:
        self._redactor = redactor
        self._is_json = is_json
        self._held = self._before = ""

    def feed(self, piece: str) -> str:
        """Return what is certain after `piece`; the start of a placeholder is kept back."""
        text = self._held + piece
        settled = self._redactor.pattern.settled_length(text)
        self._held = text[settled:]
        return self._restored(text[:settled])

    def flush(self) -> str:
        """Return what is left at the end of the reply."""
        rest, self._held = self._held, ""
        return self._restored(rest)

    def _restored(self, text: str) -> str:
        before, self._before = self._before, (self._before + text)[-_CONTEXT:]
        return restore(self._redactor, text, is_json=self._is_json, before=before)
